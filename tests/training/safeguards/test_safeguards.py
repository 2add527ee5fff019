"""Safeguards of a run: finite losses, watchdog, restart policy, and what a preemption notice leaves time for."""

import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.core.errors import ClusterError, DatasetError, DivergedError
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.restart_policy import RestartPolicy
from pipeline.training.safeguards.watchdog import EXIT_STATUS

CPU = torch.device("cpu")


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
