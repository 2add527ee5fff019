"""A time budget interrupts its block in an orderly way, and leaves the process as it was."""

import re
import signal
import threading
import time
from pathlib import Path

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import BudgetError
from pipeline.models import checkpoint
from pipeline.retraining.budget import Budget, time_budget
from pipeline.training import launch
from pipeline.training.job import TrainJob

HOURS = 0.2 / 3600


def test_the_block_is_interrupted_and_cleans_up() -> None:
    handler, start = signal.getsignal(signal.SIGALRM), time.monotonic()
    cleaned_up: list[bool] = []

    def work() -> None:
        try:
            time.sleep(60)
        finally:
            cleaned_up.append(True)

    with pytest.raises(BudgetError, match="is used up; the same command continues"), time_budget(HOURS):
        work()
    assert cleaned_up
    assert time.monotonic() - start < 30
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_thread_that_is_waited_for_is_no_obstacle() -> None:
    """Ray Train runs in a thread of its own, for which the main thread waits."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    with pytest.raises(BudgetError), time_budget(HOURS):
        thread.join()
    ended.set()
    thread.join()


@pytest.mark.ray
def test_a_training_is_saved_and_goes_on_from_its_step(
    tmp_path: Path, tree_dataset: str, ray_variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lines, steps = str(tmp_path / "run"), list[str](), list[int]()
    recipe = make_recipe("digits", epochs=1000, global_batch_size=16)
    monkeypatch.setattr(Budget, "is_exceeded", True)  # when the timer ends, which it does soon after the first step

    def progress(stage: str, done: int, total: int, remark: str = "") -> None:
        lines.append(remark)
        if stage == "train":
            steps.append(done)
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    for _ in range(2):
        lines.clear()
        with pytest.raises(BudgetError), time_budget(1):
            launch.run_training(TrainJob(tree_dataset, run, recipe, progress=progress))
        newest = checkpoint.latest(run)
        assert newest is not None
        assert checkpoint.read_state(newest)["step"] >= steps[-1] > 0  # no step is lost that was shown
        assert "the time is up; stopping after this step, with a checkpoint" in lines
    assert any(re.match(r"continuing at step [\d,]+ ", line) for line in lines)


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    with time_budget(1) as budget:
        budget.check()
    with time_budget(None) as budget:
        budget.check()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_ctrl_c_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), time_budget(1):
        raise KeyboardInterrupt


def test_in_another_thread_the_block_has_to_check() -> None:
    raised: list[str] = []

    def work() -> None:
        try:
            with time_budget(HOURS) as budget:
                time.sleep(0.4)
                budget.check()
        except BudgetError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1
