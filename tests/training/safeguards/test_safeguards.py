"""Safeguards of a run: finite losses, watchdog, restart policy, and what a preemption notice leaves time for."""

import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.core.errors import ClusterError, DatasetError, DivergedError
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.training.on_device.steps_in_flight import StepResult
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.restart_policy import RestartPolicy
from pipeline.training.safeguards.watchdog import EXIT_STATUS


def result(step: int, loss: float, norm: float, scale: float = 1.0) -> StepResult:
    is_finite = math.isfinite(loss) and math.isfinite(norm)
    return StepResult(step, np.arange(2), loss, loss, norm, is_finite, scale, 0)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_steps_that_are_not_finite_are_counted(loss: float, norm: float) -> None:
    skipped: list[int] = []
    with pytest.raises(DivergedError, match="step 7: the loss is"):
        FiniteGuard(0).passes(result(7, loss, norm), skipped)
    guard = FiniteGuard(2)
    assert guard.passes(result(1, 1.0, 2.0), skipped)
    assert not guard.passes(result(8, loss, norm), skipped)
    assert not guard.passes(result(9, loss, norm), skipped)
    with pytest.raises(DivergedError):
        guard.passes(result(10, loss, norm), skipped)
    assert skipped == [8, 9]


def test_a_gradient_that_a_lower_scale_makes_finite_is_not_counted() -> None:
    skipped: list[int] = []
    guard = FiniteGuard(0)
    assert guard.passes(result(1, 2.0, math.inf, scale=2.0), skipped)
    with pytest.raises(DivergedError):
        guard.passes(result(2, 2.0, math.inf, scale=1.0), skipped)  # the lowest scale
    with pytest.raises(DivergedError):
        guard.passes(result(3, math.nan, math.inf, scale=2.0), skipped)  # the scale has no part in the loss
    assert not skipped


def test_a_process_in_which_nothing_moves_ends_itself_and_says_where_it_was() -> None:
    code = (
        "import time; from pipeline.training.safeguards.watchdog import Watchdog; w = Watchdog(0.5, print)\n"
        "for n in range(4): time.sleep(0.3); w.beat(f'step {n}')\n"
        "time.sleep(30)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-u", "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == EXIT_STATUS == 75
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
    monkeypatch.setattr("pipeline.training.safeguards.preemption.preemption_info", lambda: info)
    assert PreemptionWatcher(1).new_notice(writer, lambda: tensors) is None  # rank 0 looks
    watcher = PreemptionWatcher(0)
    line = watcher.new_notice(writer, lambda: tensors)
    assert watcher.saves == saves
    assert words in str(line)
    assert watcher.new_notice(writer, lambda: tensors) is None  # said once
