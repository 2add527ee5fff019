"""Tells the failures of a model from those of the machine, of storages and of the installation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.cluster.ray_errors import unwrap
from pipeline.core.errors import CheckpointError, DamagedError, ModelFailedError, PipelineError, RecipeError

_MODELS = (ModelFailedError, CheckpointError, RecipeError, DamagedError)
_MACHINES = (PipelineError, OSError, ImportError, MemoryError, torch.OutOfMemoryError)
# Of a RuntimeError, PyTorch's class for errors of drivers and allocators, too, only the text tells what it is.
_MACHINES_TEXT = re.compile(
    r"CUDA error|cuDNN error|CUBLAS_|NCCL|out of memory|not enough memory|can't allocate memory", re.IGNORECASE
)


@contextmanager
def tagged() -> Iterator[None]:
    """Turns exceptions of the block, the code of a model, into a ModelFailedError.

    Those of the machine, of storages and of the installation pass, and so does every PipelineError.
    """
    try:
        yield
    except Exception as error:
        is_machines = isinstance(error, RuntimeError) and _MACHINES_TEXT.search(str(error))
        if is_machines or isinstance(error, _MACHINES):
            raise
        raise ModelFailedError(f"{type(error).__name__}: {error}") from error


def model_failure(error: BaseException) -> BaseException | None:
    """Returns the exception, of those that `error` wraps, that says that the model itself fails; None if none does.

    That is what `tagged` raises, and a model that is damaged or has another form. A process that has died, memory that
    is used up and a storage that refuses say nothing of the model.
    """
    return next((each for each in unwrap(error) if isinstance(each, _MODELS)), None)
