"""Which of a rank's batches its own threads make, and which are left to tasks on other nodes; without threads or Ray.

Threads take the nearest batch that nobody makes. Tasks are asked only while threads are behind, and for batches further
ahead: as far as the stream gets in the time that a task's batch takes, so that it is there when its turn comes. A batch
that was asked for and isn't there in its turn, or that took far longer than others, is made by threads.
"""

import math
from collections import deque
from collections.abc import Callable, Collection
from statistics import median

_PATIENCE_SECONDS = 2.0
"""A task's batch is given up after this, or after four times what they take. A guess, not measured."""
_RECENT = 8  # batches, of which the measured times are medians
_LEAD = 1.5  # of the time that a task's batch takes: some take longer. A guess, not measured.


class Claims:
    """The table of one stream: the state of each batch, which is free, begun by threads, asked of tasks, or made.

    Threads may begin what was asked of tasks; whoever is ready first has made it. num_batches: of the stream. ahead:
    how many batches threads may have begun beside the next one. window: number of batches, from the next one on, that
    may be made at a time. clock: returns seconds.
    """

    def __init__(self, num_batches: int, ahead: int, window: int, clock: Callable[[], float]) -> None:
        self._num_batches, self._ahead, self._window, self._clock = num_batches, ahead, window, clock
        self.next = 0
        """Number of the batch whose turn it is."""
        self._begun: set[int] = set()
        self._asked: dict[int, float] = {}
        self._late: dict[int, float] = {}  # asked of tasks, which may still make them, and given up
        self._made: set[int] = set()
        self._waits: deque[float] = deque(maxlen=_RECENT)  # seconds from asking for a batch to having it
        self._turns: deque[float] = deque(maxlen=2 * _RECENT)  # when batches were taken

    # --- what is to be done ---------------------------------------------------------------------------------------

    def for_threads(self) -> int | None:
        """Returns the batch that threads are to begin now, or None."""
        self._give_up()
        first = self.next
        if first < self._num_batches and first not in self._made and first not in self._begun:
            idle = self._begun <= self._made
            if first not in self._asked or idle:
                return first
        return self._free(first, ()) if len(self._begun) <= self._ahead else None

    def for_tasks(self, most: int) -> int | None:
        """Returns the batch to ask tasks for now, or None. most: batches that they may have to make at a time."""
        self._give_up()
        lead, last = self.lead(), self._window - 1
        if lead > last:  # they would come too late: one at a time tells when that has changed
            lead, most = last, min(most, 1)
        if not self.is_behind() or len(self._asked) + len(self._late) >= most:
            return None
        return self._free(self.next + lead, self._late)

    def is_behind(self) -> bool:
        """Whether fewer batches are ready, one after the other, than half of those that threads begin ahead."""
        last = min(self.next + (self._ahead + 1) // 2, self._num_batches)
        return any(number not in self._made for number in range(self.next, last))

    def lead(self) -> int:
        """Returns how far ahead of the next batch tasks make theirs, in batches; beside the window if they are slow."""
        if len(self._turns) < 2 or not self._waits:
            return self._ahead
        rate = (len(self._turns) - 1) / max(self._turns[-1] - self._turns[0], 1e-9)
        return max(self._ahead, math.ceil(_LEAD * median(self._waits) * rate))

    def _free(self, first: int, also_taken: Collection[int]) -> int | None:
        last = min(self.next + self._window, self._num_batches)
        taken = (self._begun, self._asked, self._made, also_taken)
        return next((number for number in range(first, last) if not any(number in each for each in taken)), None)

    def _give_up(self) -> None:
        patience, now = max(_PATIENCE_SECONDS, 4 * median(self._waits or [0.0])), self._clock()
        for number in [number for number, since in self._asked.items() if now - since > patience]:
            self._late[number] = self._asked.pop(number)

    # --- what has been done ---------------------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        """Notes that threads have begun a batch."""
        self._begun.add(number)

    def ask(self, number: int) -> None:
        """Notes that tasks were asked for a batch."""
        self._asked[number] = self._clock()

    def made(self, number: int) -> bool:
        """Notes that a batch is there. Returns False if it isn't needed: it was there before, or its turn is over."""
        if number < self.next or number in self._made:
            return False
        self._made.add(number)
        return True

    def arrived(self, number: int) -> bool:
        """Notes that a batch has come from a task. Returns what `made` does."""
        since = self._asked.pop(number, None) or self._late.pop(number, None)
        if since is not None:
            self._waits.append(self._clock() - since)
        return self.made(number)

    def lost(self, number: int) -> None:
        """Notes that tasks won't make a batch: it is free again, unless threads have begun it."""
        self._asked.pop(number, None)
        self._late.pop(number, None)

    def is_made(self, number: int) -> bool:
        """Whether a batch is there, and its turn isn't over."""
        return number in self._made

    def take(self) -> int:
        """Notes that the consumer gets the next batch, which was made. Returns its number."""
        number = self.next
        self._made.remove(number)
        self._begun.discard(number)
        self.next += 1
        self._turns.append(self._clock())
        return number
