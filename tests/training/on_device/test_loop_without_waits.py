"""The real loop on steps that the host reads later: nothing waits, and everything that is kept is the same."""

import contextlib
import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import DivergedError
from pipeline.models import checkpoint
from pipeline.models.losses import sample_losses
from pipeline.training import loop
from pipeline.training.job import TrainJob
from pipeline.training.loop import run_steps
from pipeline.training.on_device.steps_in_flight import StepsInFlight
from pipeline.training.on_device.waits import Waits, count_waits
from pipeline.training.setup import Place, set_up
from pipeline.training.train_step import TrainStep
from pipeline.training.worker import Worker
from tests.support.trained.steps import Steps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def job_of(dataset: str, run: Path, **changes: Any) -> TrainJob:
    fields = {"epochs": 3, "global_batch_size": 24, "precision": "float32", **changes}
    skips = fields.pop("max_skipped_steps", 0)
    return TrainJob(dataset, str(run), make_recipe("seed-cnn", **fields), seed=5, max_skipped_steps=skips)


def worker_of(job: TrainJob, exits: contextlib.ExitStack, steps_in_flight: int) -> Worker:
    worker = set_up(job, exits, Place.alone(DEVICE))
    worker.in_flight = StepsInFlight(1, DEVICE, steps_in_flight)
    worker.reported_at = math.inf  # no report falls due by the clock
    return worker


def train(job: TrainJob, steps_in_flight: int, schedule: Steps) -> tuple[dict[str, torch.Tensor], Worker]:
    """Trains, and returns all tensors that a checkpoint would hold, and the worker."""
    with contextlib.ExitStack() as exits:
        worker = worker_of(job, exits, steps_in_flight)
        run_steps(worker, schedule)
        loop.count_results(worker, worker.state.step)
        loop.report(worker, schedule, catch_up=True)
        worker.writer.wait()
        tensors = worker.learner.tensors(worker.state)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, worker


MIXED = Augment(crop_padding_px=2, flip_probability=0.5, mixup_alpha=0.4, cutmix_alpha=1.0)
FEATURES: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")},
    **{name: {"optimizer": name} for name in ("lars", "lamb")},
    "muon": {"model": "airbench-small", "optimizer": "muon"},
    "clip": {"clip_norm": 0.5},
    "adaptive clip": {"adaptive_clip": 0.01},
    "corrected decay": {"optimizer": "adamw", "weight_decay": 0.1, "corrected_weight_decay": True},
    "sharpness": {"sam_radius": 0.05},
    "growing ema": {"ema_decay": 0.9, "ema_warmup_power": 2 / 3},
    "ema": {"ema_decay": 0.9, "ema_every_steps": 2},
    "look-ahead": {"look_ahead_every_steps": 2},
    "mixed": {"augment": MIXED},
    "mse": {"loss": "mse"},
    "binary": {"loss": "binary-cross-entropy", "target_threshold": 0.2, "augment": MIXED},
    "erased": {"augment": Augment(erase_probability=0.5, cutout_px=4)},
    "accumulated": {"accumulate_steps": 3},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
    "teacher": {"distill_weight": 0.5},
    "filtered": {"residency": "resident", "proxy_filter": ProxyFilter("seed-cnn")},
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_no_step_waits_between_two_reports(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    if feature != "rmsprop":  # the others are fused on a GPU; on CPUs they aren't, and read counters that are there
        monkeypatch.setattr("pipeline.training.optim.factory._fused", lambda groups: {"fused": True})
    with contextlib.ExitStack() as exits:
        worker = worker_of(job_of(digits_dataset, tmp_path, **FEATURES[feature]), exits, 4)
        if feature == "teacher":
            worker.learner.train_step._teacher = copy.deepcopy(worker.learner.net).eval()
        run_steps(worker, Steps(2))  # the state of optimisers is made in the first steps
        with count_waits(DEVICE) as waits:
            run_steps(worker, Steps(8))
        assert worker.state.step == 8
    assert not waits.total, waits.table(steps=6)


def test_a_wait_in_a_step_would_be_found(digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(*arguments: Any) -> torch.Tensor:
        losses = sample_losses(*arguments)
        return losses / max(1.0, float(losses.detach().max()))

    monkeypatch.setattr("pipeline.training.train_step.sample_losses", asks)
    with contextlib.ExitStack() as exits:
        worker = worker_of(job_of(digits_dataset, tmp_path), exits, 4)
        with count_waits(DEVICE) as waits:
            run_steps(worker, Steps(6))
    assert isinstance(waits, Waits)
    assert waits["read"] >= 6


def planted(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Makes the losses of some steps NaN, counted from the start of each run."""
    count = [0]

    def losses(*arguments: Any) -> torch.Tensor:
        count[0] += 1
        return sample_losses(*arguments) * (math.nan if count[0] - 1 in bad else 1.0)

    monkeypatch.setattr("pipeline.training.train_step.sample_losses", losses)


@pytest.mark.parametrize(
    "feature", ["nesterov", "adamw", "lamb", "ema", "look-ahead", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_steps_that_are_read_later_keep_the_same_state(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    """Two steps of twelve are skipped, one of them in flight while a checkpoint is due."""
    runs = []
    for in_flight in (0, 4):
        with monkeypatch.context() as patch:
            planted(patch, {1, 6})
            job = job_of(digits_dataset, tmp_path / str(in_flight), max_skipped_steps=2, **FEATURES[feature])
            runs.append(train(job, in_flight, Steps(12, checkpoint_every=5)))
    (now, at_once), (later, worker) = runs
    assert now.keys() == later.keys()
    differing = [name for name in now if not torch.equal(now[name].nan_to_num(-1), later[name].nan_to_num(-1))]
    assert not differing
    assert worker.state.skipped == at_once.state.skipped == [1, 6]
    kept = ("step", "epoch", "images", "loss", "learning_rate", "skipped_steps")
    lines = [[{name: line[name] for name in kept} for line in each.state.history] for _, each in runs]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6, 8, 10, 12]
    assert [line["skipped_steps"] for line in lines[0]] == [1, 1, 1, 2, 2, 2]
    for name in (5, 10):
        place = checkpoint.folder(str(tmp_path / "4"), name)
        saved, same = checkpoint.load(place), checkpoint.load(checkpoint.folder(str(tmp_path / "0"), name))
        assert len(saved.state["skipped"]) == len(same.state["skipped"]) == (1 if name == 5 else 2)
        assert len(saved.tensors["losses"]) == name  # all that was in flight has been read
        assert all(
            torch.equal(saved.tensors[each].nan_to_num(-1), same.tensors[each].nan_to_num(-1)) for each in same.tensors
        )


@pytest.mark.parametrize("in_flight", [0, 4])
@pytest.mark.parametrize("bad", [3, 4, 8])
def test_a_loss_that_is_not_finite_ends_the_run_soon_and_leaves_no_later_checkpoint(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int, bad: int
) -> None:
    planted(monkeypatch, {bad})
    job = job_of(digits_dataset, tmp_path)
    with contextlib.ExitStack() as exits:
        worker = worker_of(job, exits, in_flight)
        with pytest.raises(DivergedError, match=f"step {bad}: the loss is nan and .*; nothing was updated. Images "):
            run_steps(worker, Steps(30, checkpoint_every=5))
        assert worker.state.step <= bad + 1 + in_flight
    newest = checkpoint.latest(job.run)
    last_good = bad // 5 * 5
    assert newest == (checkpoint.folder(job.run, last_good) if last_good else None)
    assert (tmp_path / f"diverged-step-{bad}-rank-0.json").exists()


@pytest.mark.slow
def test_a_scale_that_is_too_high_is_lowered_without_a_skipped_step_and_is_resumed(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainStep.__init__

    def high(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.loss_scale.tensors["scale"].fill_(2.0**34)

    monkeypatch.setattr(TrainStep, "__init__", high)
    whole, worker = train(job_of(digits_dataset, tmp_path / "whole", precision="float16"), 4, Steps(14))
    assert whole["loss_scale/scale"] < 2.0**34
    assert not worker.state.skipped
    assert all(math.isfinite(loss) for loss in worker.state.losses)
    job = job_of(digits_dataset, tmp_path / "parts", precision="float16")
    train(job, 4, Steps(8, checkpoint_every=4))
    assert checkpoint.latest(job.run) == checkpoint.folder(job.run, 8)
    monkeypatch.setattr(TrainStep, "__init__", original)
    parts, _ = train(job, 4, Steps(14))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_without_a_scale_is_readable(digits_dataset: str, tmp_path: Path) -> None:
    """As an earlier version wrote it, in the precision "auto"."""
    job = job_of(digits_dataset, tmp_path, precision="float32")
    train(job, 0, Steps(5, checkpoint_every=5))
    with contextlib.ExitStack() as exits:
        other = replace(job, recipe=replace(job.recipe, precision="float16"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.training.resume.check_identity", lambda *_: None)
            worker = set_up(other, exits, Place.alone(DEVICE))
        assert worker.state.step == 5
        assert worker.learner.loss_scale["scale"].item() == 2.0**16
