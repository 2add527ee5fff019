"""The parts of the training loop, each by itself: guards, averages, micro-batches, views, operations."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.core.errors import ClusterError, DatasetError, DivergedError
from pipeline.evaluation.inference import view_logits
from pipeline.loader.batch import Batch
from pipeline.loader.crops import flips
from pipeline.loader.sample_order import Order
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.restart_policy import RestartPolicy
from pipeline.training.train_step import TrainStep

CPU = torch.device("cpu")
KEYS = np.arange(24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


# --- guards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_updates_nothing(loss: float, norm: float) -> None:
    skipped: list[int] = []
    bad = (torch.tensor(loss), torch.tensor(norm))
    with pytest.raises(DivergedError, match="step 7: the loss is"):
        FiniteGuard(0, 1, CPU).may_update(*bad, 7, skipped)
    guard = FiniteGuard(2, 1, CPU)
    assert guard.may_update(torch.tensor(1.0), torch.tensor(2.0), 1, skipped)
    assert not guard.may_update(*bad, 8, skipped)
    assert not guard.may_update(*bad, 9, skipped)
    with pytest.raises(DivergedError):
        guard.may_update(*bad, 10, skipped)
    assert skipped == [8, 9]


def test_a_process_in_which_nothing_moves_ends_itself_and_says_where_it_was() -> None:
    code = (
        "import time; from pipeline.training.safeguards.watchdog import Watchdog; w = Watchdog(0.5, print)\n"
        "for n in range(4): time.sleep(0.3); w.beat(f'step {n}')\n"
        "time.sleep(30)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-u", "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == 75
    assert "after step 3; this worker ends" in done.stdout
    assert 'File "<string>", line 3' in done.stderr


def test_failures_are_counted_between_checkpoints_and_users_errors_end_the_run(tmp_path: Path) -> None:
    policy, crash = RestartPolicy(str(tmp_path)), {0: RuntimeError("connection closed by peer")}
    for step in range(10):  # progress between
        writer = CheckpointWriter(str(tmp_path))
        writer.save(step, {"w": torch.zeros(1)}, {})
        writer.wait()
        policy.check(crash)
    for _ in range(2):
        policy.check(crash)
    with pytest.raises(ClusterError, match=r"failed 4 times between .*000000009 and .*closed by peer"):
        policy.check(crash)
    with pytest.raises(DatasetError, match="mine"):
        policy.check({0: RuntimeError("collateral"), 1: DatasetError("mine")})


# --- steps -------------------------------------------------------------------------------------------------------


def batch_of(count: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    rows = np.arange(count)
    return Batch(0, rows, images, torch.arange(count) % 4, KEYS[:count], rows, rows[:0])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize(("count", "parts"), [(12, 3), (11, 4), (3, 8)])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(count: int, parts: int, mixup: float) -> None:
    gradients = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        recipe = make_recipe("cifar10", optimizer="nesterov", learning_rate=0.1, precision="float32",
                             accumulate_steps=accumulate, augment=Augment(mixup_alpha=mixup))  # fmt: skip
        order = Order((count,), 0, count, pairs=bool(mixup))
        step = TrainStep(recipe, net, make_optimizers(net, recipe), order)
        loss, norm = step.gradients(batch_of(count), 0)
        gradients.append([loss, norm, *[parameter.grad for parameter in net.parameters()]])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_too_long_is_cut() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    recipe = make_recipe("cifar10", optimizer="sgd", learning_rate=1.0, bias_rate=1.0, clip_norm=0.01,
                         schedule="constant", precision="float32", weight_decay=0.0)  # fmt: skip
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step = TrainStep(recipe, net, make_optimizers(net, recipe), Order((12,), 0, 12))
    _, norm = step.gradients(batch_of(12), 0)
    assert float(norm) > 0.01
    step.update(norm, 0, 10)
    length = sum((p.detach() - b).square().sum() for p, b in zip(net.parameters(), before, strict=True)) ** 0.5
    assert float(length) == pytest.approx(0.01, rel=1e-3)


# --- images ------------------------------------------------------------------------------------------------------


def test_alternating_flips_show_the_other_side_in_every_next_epoch() -> None:
    spec = Augment(flip_probability=0.5, flip_alternates=True)
    sides = [flips(spec, 3, epoch, KEYS) for epoch in range(4)]
    assert 0 < sides[0].sum() < len(KEYS)
    assert np.array_equal(sides[0], ~sides[1])
    assert np.array_equal(sides[0], sides[2])
    assert np.array_equal(sides[1], sides[3])


def test_views_are_weighted_as_published() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5)), torch.randn(4, 3, 6, 6)
    assert torch.equal(view_logits(net, images, "none"), net(images))
    both = (net(images) + net(images.flip(-1))) / 2
    assert torch.allclose(view_logits(net, images, "flip"), both, atol=1e-6)
    padded, expected = F.pad(images, (1, 1, 1, 1), "reflect"), 0.5 * both
    for n in (0, 2):
        shifted = padded[:, :, n : n + 6, n : n + 6]
        expected = expected + 0.125 * (net(shifted) + net(shifted.flip(-1)))
    assert torch.allclose(view_logits(net, images, "flip-and-shift"), expected, atol=1e-6)


# --- notices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds_left", "saves", "words"),
    [
        (100, "all", "a checkpoint is written now"),
        (20, "weights", "not for a checkpoint (30.0 s)"),
        (5, "", "anything"),
    ],
)
def test_what_a_notice_leaves_time_for_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_left: float, saves: str, words: str
) -> None:
    """Ten bytes a second, 100 bytes of weights, 200 of the optimiser's."""
    writer = CheckpointWriter(str(tmp_path))
    writer.written_bytes, writer.written_seconds = 1000, 100.0
    tensors = {"model/w": torch.zeros(25), "optimizer/0/w/momentum": torch.zeros(50)}
    info = SimpleNamespace(deadline_ms=int(1000 * (time.time() + seconds_left)), preempted_ranks=[1])
    monkeypatch.setattr("pipeline.training.safeguards.preemption._preemption", lambda: info)
    assert PreemptionWatcher(1).new_notice(writer, lambda: tensors) is None  # rank 0 looks
    watcher = PreemptionWatcher(0)
    line = watcher.new_notice(writer, lambda: tensors)
    assert watcher.saves == saves
    assert words in str(line)
    assert watcher.new_notice(writer, lambda: tensors) is None  # said once


@pytest.mark.ray
def test_a_runs_operations_are_those_of_an_image_times_its_images_times_its_epochs(trained: str) -> None:
    output = json.loads(Path(trained, checkpoint.OUTPUT_NAME).read_text())
    images = 1438 - 144  # of train, without what was held out
    assert output["operations"]["total"] == pytest.approx(output["operations"]["per_image"] * images * 3)
