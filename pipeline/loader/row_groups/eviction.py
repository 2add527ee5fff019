"""Which row groups a cache keeps: the one whose next use is farthest goes first (Belady 1966, IBM Systems Journal 5/2).

Others guess what will be used next. Here the order is known, so the rule is exact. A row group is visited once an epoch
and stays while it is visited, so the cache must hold the row groups of the shuffling windows that a step touches: two,
where a step reads the end of one and the beginning of the next. A visit that finds no room is read row by row.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.loader.row_groups.visits import NEVER, Visit


@dataclass(frozen=True)
class Eviction:
    """A row group that goes, of `length` bytes. Nobody reads it after global step `last`, until it is fetched again."""

    group: int
    length: int
    last: int


@dataclass(frozen=True)
class Decision:
    """What happens for a visit: the row group is there already, is fetched whole, or its rows are read one by one."""

    kind: Literal["kept", "fetch", "rows"]
    evictions: tuple[Eviction, ...] = ()
    """What goes first, to make room."""


class Keeper:
    """Decides what a cache keeps, visit by visit, in the order in which the visits begin.

    max_bytes: size of the cache; None for no limit. next_use: (row group, step) -> the first step after it that uses
    the row group. kept: {row group: bytes} of what is there; none of it is being read at step `now`.
    """

    def __init__(
        self, max_bytes: int | None, next_use: Callable[[int, int], int], kept: Mapping[int, int] = {}, now: int = 0
    ) -> None:
        self._max_bytes, self._next_use = NEVER if max_bytes is None else max_bytes, next_use
        self._length: dict[int, int] = {}
        self._last: dict[int, int] = {}  # of kept row groups: last step of the last visit
        self._open: list[tuple[int, int]] = []  # heap of (last step, row group)
        self._closed: list[tuple[int, int, int]] = []  # heap of (-next use, row group, last step of the visit before)
        self.used_bytes = 0
        for group, length in sorted(kept.items()):
            self.adopt(group, length, now - 1)

    def adopt(self, group: int, length: int, last: int) -> None:
        """Takes notice of a row group that is there, and isn't read after step `last` before its next visit begins."""
        if group not in self._length:
            self._length[group], self._last[group] = length, last
            self.used_bytes += length
            heapq.heappush(self._closed, (-self._next_use(group, last), group, last))

    def decide(self, visit: Visit) -> Decision:
        """Returns what is done for a visit. Visits that begin at the same step are there together."""
        self._close_before(visit.first)
        if visit.group in self._length:
            self._opened(visit)
            return Decision("kept")
        evictions = self._room_for(visit)
        if evictions is None:
            return Decision("rows")
        self._length[visit.group] = visit.length
        self.used_bytes += visit.length
        self._opened(visit)
        return Decision("fetch", tuple(evictions))

    def shrink(self) -> list[Eviction]:
        """Removes what is more than the cache may hold, such as what is left of a larger one."""
        evictions = []
        while self.used_bytes > self._max_bytes and (eviction := self.evict()):
            evictions.append(eviction)
        return evictions

    def evict(self, later_than: int = -1) -> Eviction | None:
        """Removes the row group whose next use is farthest; None if all are being read, or used up to `later_than`."""
        while self._closed and -self._closed[0][0] > later_than:
            _, group, last = heapq.heappop(self._closed)
            if self._last.get(group) == last:  # not visited since
                length = self._length.pop(group)
                self.used_bytes -= length
                return Eviction(group, length, self._last.pop(group))
        return None

    def _room_for(self, visit: Visit) -> list[Eviction] | None:
        """Removes what must go for a visit, and returns it; None, and nothing goes, if that isn't enough."""
        evictions: list[Eviction] = []
        while self.used_bytes + visit.length > self._max_bytes:
            # What is read at the same step, too, doesn't go: one of both would be read row by row anyway.
            eviction = self.evict(visit.first) if visit.is_worth else None
            if eviction is None:
                for each in evictions:
                    self.adopt(each.group, each.length, each.last)
                return None
            evictions.append(eviction)
        return evictions

    def forget(self, group: int) -> None:
        """Takes notice that a row group being read isn't there after all."""
        length = self._length.pop(group)
        del self._last[group]
        self.used_bytes -= length

    def _opened(self, visit: Visit) -> None:
        self._last[visit.group] = max(visit.last, self._last.get(visit.group, -1))
        heapq.heappush(self._open, (visit.last, visit.group))

    def _close_before(self, step: int) -> None:
        while self._open and self._open[0][0] < step:
            last, group = heapq.heappop(self._open)
            if self._last.get(group) == last:  # not visited again, and not forgotten
                heapq.heappush(self._closed, (-self._next_use(group, last), group, last))
