"""A time budget interrupts its block in an orderly way, and leaves the process as it was."""

import signal
import threading
import time

import pytest

from pipeline.core.errors import BudgetError
from pipeline.retraining.budget import time_budget

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
