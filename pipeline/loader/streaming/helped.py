"""Batches made by threads of this process and, where these are behind, by helpers elsewhere; in order.

A batch is the same wherever it is made. So the stream takes whichever maker of its next batch is ready first, and a
helper that is slow, or gone, costs time and nothing else.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ExactnessError
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.streaming.claims import Claims
from pipeline.loader.streaming.plan import ConsumerClosedError, Source, StreamPlan
from pipeline.loader.streaming.threads import BatchThreads, PendingBatch

_log = logging.getLogger(__name__)

Columns = dict[str, npt.NDArray[Any]]
_POLL_SECONDS = 0.2
_MOST_AHEAD = 256  # batches; a limit for small ones, which many fit into the memory
_TELL_AFTER = 100  # batches since a helper's first one: then it is said how they are shared


class Helpers(Protocol):
    """Whoever makes batches elsewhere. Its methods return at once."""

    def most(self) -> int:
        """Returns how many batches they may have to make at a time; 0 while there is nobody."""
        ...

    def call(self) -> None:
        """Says that help is wanted."""
        ...

    def ask(self, number: int) -> None:
        """Asks for a batch of the sampler."""
        ...

    def arrived(self) -> list[tuple[int, Columns | None]]:
        """Returns (number, columns) of the batches that have come since the last call; None for one that won't come.

        columns: those of `batch_from_columns`.
        """
        ...

    def close(self) -> None:
        """Ends all help."""
        ...


StartHelpers = Callable[[Callable[[], None]], Helpers]
"""Makes the helpers of a stream. They call the function, from any thread, whenever something has arrived."""


def helped_source(
    plan: StreamPlan,
    pinned: bool,
    start: StartHelpers,
    ahead_bytes: int,
    tell: Callable[[str], None] = _log.info,
) -> Source:
    """Returns what makes a plan's batches by threads and helpers.

    pinned: threads decode into pinned memory. ahead_bytes: memory for the batches that are made ahead, at least those
    of `thread_source`. tell: receives a line that says how the batches are shared.
    """

    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        with ExitStack() as stack:
            stream = _HelpedStream(plan, pinned, start, ahead_bytes, stack)
            shares = _Shares()
            for _ in range(len(plan.sampler)):
                batch, by_helper = stream.next(is_closed)
                if line := shares.count(by_helper):
                    tell(line)
                yield batch

    return source


def batch_bytes(plan: StreamPlan) -> int:
    """Returns the bytes of the images of a batch at the stream's largest size."""
    return max(1, len(plan.sampler.rows(0)) * plan.transform.size_px**2 * 3) if len(plan.sampler) else 1


class _HelpedStream:
    """The makers of one stream and what they have made. Used by one thread."""

    def __init__(self, plan: StreamPlan, pinned: bool, start: StartHelpers, ahead_bytes: int, stack: ExitStack) -> None:
        self._sampler, self._keys = plan.sampler, plan.index().key_hash
        self._changed = threading.Event()
        self._threads = stack.enter_context(closing(BatchThreads(plan, pinned)))
        self._helpers = stack.enter_context(closing(start(self._changed.set)))
        ahead = self._threads.batches_ahead(len(plan.sampler.rows(0)) if len(plan.sampler) else 1)
        window = max(ahead + 1, min(ahead_bytes // batch_bytes(plan), _MOST_AHEAD))
        self._claims = Claims(len(plan.sampler), ahead, window, time.monotonic)
        self._pending: dict[int, PendingBatch] = {}
        self._arrived: dict[int, Columns] = {}

    def next(self, is_closed: Callable[[], bool]) -> tuple[Batch, bool]:
        """Returns the next batch, and whether a helper made it. Raises what its making raised; ConsumerClosedError."""
        number = self._claims.next
        while True:
            self._changed.clear()
            self._look()
            self._hand_out()
            if self._claims.is_made(number):
                break
            if is_closed():
                raise ConsumerClosedError
            self._changed.wait(_POLL_SECONDS)
        self._claims.take()
        if (columns := self._arrived.pop(number, None)) is not None:
            if number in self._pending:
                self._pending.pop(number).cancel()
            self._threads.passed(number)
            return self._checked(number, columns), True
        return self._threads.end(self._pending.pop(number), is_closed), False

    def _look(self) -> None:
        """Notes what is there."""
        for number, pending in self._pending.items():
            if pending.done:
                self._claims.made(number)
        for number, columns in self._helpers.arrived():
            if columns is None:
                self._claims.lost(number)
            elif self._claims.arrived(number):
                self._arrived[number] = columns

    def _checked(self, number: int, columns: Columns) -> Batch:
        rows = self._sampler.rows(number)
        if not np.array_equal(columns["row"], rows):
            raise ExactnessError(
                f"received batch {number} with rows {columns['row'][:8]}..., expected rows {rows[:8]}..."
            )
        return batch_from_columns(number, columns, self._keys, self._sampler.epochs(number))

    def _hand_out(self) -> None:
        """Has threads and helpers begin what is to be begun now."""
        most = self._helpers.most()
        if self._claims.is_behind():
            self._helpers.call()
        while (number := self._claims.for_threads()) is not None:
            self._claims.begin(number)
            self._pending[number] = self._threads.begin(number, self._changed.set)
        while (number := self._claims.for_tasks(most)) is not None:
            self._claims.ask(number)
            self._helpers.ask(number)


class _Shares:
    """Counts who makes the batches, and says it once, when helpers have been at work for a while."""

    def __init__(self) -> None:
        self._by_helpers = self._all = 0
        self._start = 0.0

    def count(self, by_helper: bool) -> str:
        """Counts a batch. Returns the line when it is due, else an empty text."""
        if not self._all and not by_helper:
            return ""
        self._start = self._start or time.monotonic()
        self._all += 1
        self._by_helpers += by_helper
        if self._all != _TELL_AFTER:
            return ""
        seconds = time.monotonic() - self._start
        return (
            f"batches: of {self._all}, threads made {self._all - self._by_helpers} and tasks on other nodes "
            f"{self._by_helpers}; {self._all / seconds:.1f} a second"
        )
