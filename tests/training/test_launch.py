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


@pytest.mark.parametrize(
    ("name", "workers", "remedies"),
    [
        ("resnet50", 64, ["--workers 8", "--recipe resnet50-batch2048", "--recipe resnet50-batch4096"]),
        ("resnet50", 9, ["--workers 8", "--recipe resnet50-batch1024", "--recipe resnet50-batch2048"]),
        ("digits", 5, ["--workers 4"]),
        ("resnet50", 8, []),
        ("resnet50-batch32768", 1024, []),
        ("digits", 0, []),  # this process
    ],
)
def test_a_worker_with_few_images_is_warned_of_with_the_remedy(name: str, workers: int, remedies: list[str]) -> None:
    recipe = make_recipe(name)
    lines = launch.few_images(recipe, workers)
    assert len(lines) == bool(remedies)
    if remedies:
        size = recipe.global_batch_size
        assert lines[0].startswith(f"{workers} workers share global_batch_size={size}: {size // workers} images each")
        for remedy in remedies:
            assert remedy in lines[0]
            kind, _, value = remedy.partition(" ")
            changed = recipe if kind == "--workers" else make_recipe(value)
            assert not launch.few_images(changed, int(value) if kind == "--workers" else workers)


def test_one_worker_with_a_small_batch_is_not_warned_of() -> None:
    assert launch.few_images(make_recipe("digits", global_batch_size=8), 1) == []
