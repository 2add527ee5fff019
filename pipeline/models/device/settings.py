"""Settings of torch that hold for the whole process: cuDNN's choice of kernels, TF32, deterministic algorithms.

A run sets them for its own time and leaves the process as it found it: it may be the user's own. On CPUs they change
nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pipeline.core.errors import RecipeError
from pipeline.core.variables import environment_variables

# cuBLAS reads it when it starts: buffers of a fixed size for each stream make its sums repeatable
# (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
_CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
_CONVOLUTIONS: Any = torch.backends.cudnn
_PRODUCTS: Any = torch.backends.cuda.matmul


@contextmanager
def training_settings(deterministic: bool = False) -> Iterator[None]:
    """Sets torch up for training in the block: cuDNN times its kernels, and products of float32 may use TF32.

    deterministic: torch uses deterministic algorithms alone, so that a GPU repeats its numbers to the last bit; cuDNN
    then times nothing, because the fastest kernel may be another one at the next start. Enter the block before the
    process uses cuBLAS. Raises RecipeError if an operation in the block has no deterministic algorithm.
    """
    with ExitStack() as exits:
        if deterministic:
            exits.enter_context(_deterministic_algorithms())
        exits.enter_context(_kernels(timed=not deterministic, tf32=True))
        yield


@contextmanager
def evaluation_settings() -> Iterator[None]:
    """Sets torch up for evaluation in the block: float32 without TF32, and kernels that cuDNN chooses without timing.

    The fastest kernel may be another one at the next start, and with it the last bits of the outputs.
    """
    with _kernels(timed=False, tf32=False):
        yield


@contextmanager
def _kernels(timed: bool, tf32: bool) -> Iterator[None]:
    """Sets whether cuDNN times its kernels, and whether convolutions and products of matrices use TF32."""
    # torch has two interfaces to TF32: flags, and names of precisions. To set a flag sets the names, too; to read one
    # raises where the host has used names alone. So both are kept, and the flag is derived where it can't be read.
    places = [_PRODUCTS, _CONVOLUTIONS.conv, _CONVOLUTIONS.rnn]
    names = [place.fp32_precision for place in places]
    flags = _tf32_flag(_PRODUCTS, names[0]), _tf32_flag(_CONVOLUTIONS, names[1])
    before = _CONVOLUTIONS.benchmark
    _set(timed, tf32, tf32)
    try:
        yield
    finally:
        _set(before, *flags)
        for place, name in zip(places, names, strict=True):
            place.fp32_precision = name


def _set(timed: bool, tf32_products: bool, tf32_convolutions: bool) -> None:
    _CONVOLUTIONS.benchmark = timed
    _PRODUCTS.allow_tf32, _CONVOLUTIONS.allow_tf32 = tf32_products, tf32_convolutions


def _tf32_flag(place: Any, name: str) -> bool:
    """Returns the flag `allow_tf32`. Where it can't be read, it is another one than the precision's name says."""
    try:
        return bool(place.allow_tf32)
    except RuntimeError:
        return bool(name != "tf32")


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """Makes torch use deterministic algorithms in the block; an operation without one raises RecipeError."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_before = _CONVOLUTIONS.deterministic
    with environment_variables(_CUBLAS, keep=True):
        torch.use_deterministic_algorithms(True)
        _CONVOLUTIONS.deterministic = True
        try:
            yield
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            raise RecipeError(_explained(str(error))) from error
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            _CONVOLUTIONS.deterministic = cudnn_before


def _explained(text: str) -> str:
    """Returns what is wrong, and the remedy. text: torch's message."""
    if "CUBLAS_WORKSPACE_CONFIG" in text:
        remedy = "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts"
        return f"deterministic: cuBLAS was started before the run; {remedy}"
    return f"deterministic: {text.partition(',')[0]}; leave it out, or take another network"
