"""A compiled run is the same run: what is compiled before its first step leaves no trace, and the process neither."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.training.job import TrainJob
from pipeline.training.loop import run_steps
from pipeline.training.setup import Place, set_up
from tests.support.trained.steps import Steps

CPU = torch.device("cpu")


def train(job: TrainJob) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint after three steps."""
    with contextlib.ExitStack() as exits:
        worker = set_up(job, exits, Place.alone(CPU))
        assert torch.backends.cudnn.benchmark is not job.deterministic
        assert torch.are_deterministic_algorithms_enabled() is job.deterministic
        run_steps(worker, Steps(3))
        return {name: tensor.clone() for name, tensor in worker.learner.tensors(worker.state).items()}


@pytest.mark.slow
def test_it_trains_to_the_same_bits_and_the_process_is_left_as_it_was(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[dict[str, Any]] = []
    compile_it: Any = torch.compile

    def eager(model: Any, **options: Any) -> Any:
        compiled.append(options)
        return compile_it(model, backend="eager", **options)  # calls the operations as they stand

    monkeypatch.setattr(torch, "compile", eager)
    random = torch.get_rng_state()
    recipe = make_recipe("digits", precision="float32", global_batch_size=30)
    runs = {
        "plain": train(TrainJob(digits_dataset, str(tmp_path / "plain"), recipe, seed=1)),
        "job": train(TrainJob(digits_dataset, str(tmp_path / "job"), recipe, seed=1, compile=True, deterministic=True)),
    }
    assert compiled == [{"dynamic": False}]
    assert runs["plain"].keys() == runs["job"].keys()
    assert [name for name, value in runs["plain"].items() if not torch.equal(value, runs["job"][name])] == []
    assert torch.equal(random, torch.get_rng_state())
    assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_recipe_that_says_compile_still_compiles() -> None:
    old = TrainJob("", "", make_recipe("digits", compile=True))
    assert old.compiles
    assert not TrainJob("", "", make_recipe("digits")).compiles
    assert TrainJob("", "", make_recipe("digits"), compile=True).compiles
