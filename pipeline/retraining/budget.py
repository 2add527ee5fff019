"""A limit of time for a block of code: the block is interrupted in an orderly way, as by Ctrl-C."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import BudgetError
from pipeline.core.interrupts import deadline

# Ray may lose an interrupt while it starts, so it is repeated.
_SECONDS_BETWEEN_INTERRUPTS = 30.0


class Budget:
    """A limit of hours, None for no limit."""

    def __init__(self, hours: float | None) -> None:
        self._hours = hours
        self._start = time.monotonic()

    @property
    def is_exceeded(self) -> bool:
        """Whether the hours are over."""
        return self._hours is not None and time.monotonic() - self._start >= 3600 * self._hours

    def check(self) -> None:
        """Raises BudgetError if the hours are over."""
        if self.is_exceeded:
            raise self.error()

    def error(self) -> BudgetError:
        """Returns the error of a budget that is exceeded."""
        return BudgetError(f"the budget of {self._hours:g} h is used up; the same command continues from here")


@contextmanager
def time_budget(hours: float | None) -> Iterator[Budget]:
    """Interrupts the block when the hours are over, and then raises BudgetError; None sets no limit.

    The interrupt is a KeyboardInterrupt in the main thread, so every `finally` and context manager of the block runs:
    Ray is shut down and leases are given back. Training is stopped after its running step, with a checkpoint. It needs
    the timer and the handler of SIGALRM, and restores both.
    In another thread, where Python allows no signal handlers, the block has to call `Budget.check` itself.
    """
    budget = Budget(hours)
    if hours is None or threading.current_thread() is not threading.main_thread():
        yield budget
        return
    try:
        with deadline(3600 * hours, _SECONDS_BETWEEN_INTERRUPTS):
            yield budget
    except KeyboardInterrupt:
        if budget.is_exceeded:
            raise budget.error() from None  # where it was interrupted doesn't matter
        raise
