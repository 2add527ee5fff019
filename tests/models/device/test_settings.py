"""Settings of the process: set inside, as they were after, whichever of torch's two interfaces the host has used."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core.errors import RecipeError
from pipeline.evaluation.inference import Predictor
from pipeline.loader.batch import Batch
from pipeline.models.device.settings import evaluation_settings, training_settings

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul
MKLDNN: Any = torch.backends.mkldnn


def state() -> dict[str, Any]:
    """Returns every setting that is touched, by both interfaces; "mixed" for a flag that torch refuses to read."""

    def flag(place: Any) -> object:
        try:
            return place.allow_tf32
        except RuntimeError:
            return "mixed"

    return {
        "benchmark": CUDNN.benchmark,
        "deterministic": CUDNN.deterministic,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "flags": (flag(MATMUL), flag(CUDNN)),
        "names": (MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision),
        "of the CPU": (MKLDNN.matmul.fp32_precision, MKLDNN.conv.fp32_precision),
    }


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = state()
    yield
    CUDNN.benchmark, CUDNN.deterministic = before["benchmark"], before["deterministic"]
    torch.use_deterministic_algorithms(before["algorithms"], warn_only=before["warn"])
    MATMUL.allow_tf32, CUDNN.allow_tf32 = before["flags"]
    for place, name in zip((MATMUL, CUDNN.conv, CUDNN.rnn), before["names"], strict=True):
        place.fp32_precision = name
    assert state() == before


def by_default() -> None:
    """A host that has set nothing."""


def by_flags() -> None:
    CUDNN.benchmark, MATMUL.allow_tf32, CUDNN.allow_tf32 = True, True, False
    torch.use_deterministic_algorithms(True, warn_only=True)


def by_names() -> None:
    MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.deterministic = "tf32", "ieee", True


BLOCKS = {
    "training": (training_settings, {"benchmark": True, "flags": (True, True)}),
    "deterministic training": (
        lambda: training_settings(deterministic=True),
        {"benchmark": False, "flags": (True, True), "deterministic": True, "algorithms": True, "warn": False,
         "cublas": ":4096:8"},
    ),
    "evaluation": (evaluation_settings, {"benchmark": False, "flags": (False, False)}),
}  # fmt: skip


@pytest.mark.parametrize("host", [by_default, by_flags, by_names])
@pytest.mark.parametrize("name", BLOCKS)
def test_they_hold_inside_and_the_host_is_as_it_was(name: str, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    host()
    before = state()
    block: Any
    block, wanted = BLOCKS[name]
    with block():
        inside = state()
    assert {key: inside[key] for key in wanted} == wanted
    assert inside["of the CPU"] == before["of the CPU"]
    assert state() == before
    with pytest.raises(KeyError), block():
        raise KeyError
    assert state() == before


def test_an_evaluation_within_training_goes_back_to_trainings_settings() -> None:
    with training_settings():
        training = state()
        with evaluation_settings():
            assert state() != training
        assert state() == training


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation",
            "deterministic: adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation; leave it "
            "out, or take another network",
        ),
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this"
            " operation is not deterministic because it uses CuBLAS. Set CUBLAS_WORKSPACE_CONFIG=:4096:8",
            "deterministic: cuBLAS was started before the run; set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program "
            "starts",
        ),
    ],
)
def test_an_operation_without_a_deterministic_algorithm_is_said_in_one_line(text: str, message: str) -> None:
    before = state()
    with pytest.raises(RecipeError) as error, training_settings(deterministic=True):
        raise RuntimeError(text)
    assert str(error.value) == message
    assert state() == before
    with pytest.raises(RuntimeError, match=r"^out of memory$"), training_settings(deterministic=True):
        raise RuntimeError("out of memory")


def test_a_prediction_is_made_without_tf32_and_without_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Net(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(state())
            return images.mean((2, 3))

    def predict(block: AbstractContextManager[None]) -> None:
        rows = np.arange(2)
        batch = Batch(0, rows, torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), rows, rows, rows[:0])
        with block:
            Predictor(Net(), nn.Identity(), 3).predict([batch])

    predict(training_settings())
    assert (seen[0]["benchmark"], seen[0]["flags"]) == (False, (False, False))
