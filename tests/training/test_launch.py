"""The start of a run: what it leaves in the process that starts it."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.training import launch
from pipeline.training.job import TrainJob

TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def test_an_elastic_run_sets_its_timeout_for_ray_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later run of the process had it, too."""
    monkeypatch.delenv(TIMEOUT, raising=False)
    seen: list[str | None] = []
    monkeypatch.setattr(launch, "fit_trainer", lambda trainer: seen.append(os.environ.get(TIMEOUT)))
    job = TrainJob("data", str(tmp_path / "run"), make_recipe("digits"), num_workers=1, max_workers=2)
    launch.run_training(job)
    assert seen == ["10"]
    assert TIMEOUT not in os.environ


@pytest.mark.ray
def test_a_run_in_this_process_leaves_random_numbers_and_threads_alone(
    digits_dataset: str, ray_variables: None, tmp_path: Path
) -> None:
    job = TrainJob(digits_dataset, str(tmp_path / "run"), make_recipe("seed-cnn", epochs=1, global_batch_size=512))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    threads, variables = torch.get_num_threads(), dict(os.environ)
    launch.run_training(job)
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads
    assert dict(os.environ) == variables
