"""When a node reads which row group: a function of the order, known before anything is read."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pipeline.dataset.row_reader import REQUEST_BYTES, RowIndex
from pipeline.loader.sample_order import Order, Rows

NEVER = 1 << 62
"""The step of a use that doesn't come."""
# Where sampling leaves a row group out for so many epochs, it counts as never used again.
_EPOCHS_AHEAD = 4


@dataclass(frozen=True)
class Visit:
    """All reading of one row group by a node in one epoch."""

    group: int
    first: int
    """Global step of the first row."""
    last: int
    """Global step of the last row."""
    length: int
    """Bytes of the row group."""
    is_worth: bool
    """Whether one request for all of it costs less time than requests for the rows that the node reads."""


@dataclass(frozen=True)
class _Epoch:
    groups: Rows  # int64 [visits], in the order of their first rows
    first: Rows  # int64 [row groups], global step; NEVER for a row group that isn't read
    last: Rows  # int64 [row groups], global step
    length: Rows  # int64 [row groups], bytes
    is_worth: npt.NDArray[np.bool_]  # [row groups]


@dataclass(frozen=True)
class NodeReads:
    """What the ranks of one node read, from a global step on.

    index: of the split. ranks: those of `world_size` that are on the node. stop: global step before which the reading
    ends; NEVER where that isn't known.
    """

    order: Order
    index: RowIndex
    world_size: int = 1
    ranks: tuple[int, ...] = (0,)
    start: int = 0
    stop: int = NEVER
    _epochs: dict[int, _Epoch] = field(default_factory=dict, compare=False, repr=False)

    def starting_at(self, step: int) -> "NodeReads":
        """Returns the reads from another global step on."""
        return replace(self, start=step, _epochs={})

    def total_bytes(self) -> int:
        """Returns the bytes of all row groups of the split."""
        return int(self.index.group_bytes(np.arange(len(self.index.row_group_ends))).sum())

    def parts(self, step: int) -> list[Rows]:
        """Returns int64, the rows of each of the node's ranks in a global step."""
        return [self.order.rows(step, self.world_size, rank) for rank in self.ranks]

    def visits(self) -> Iterator[Visit]:
        """Yields the visits of all epochs, in the order in which they begin."""
        number = self.start // self.order.steps_per_epoch
        while number * self.order.steps_per_epoch < self.stop:
            epoch = self._epoch(number)
            for group in epoch.groups.tolist():
                steps = int(epoch.first[group]), int(epoch.last[group])
                yield Visit(group, *steps, int(epoch.length[group]), bool(epoch.is_worth[group]))
            number += 1

    def next_use(self, group: int, after: int) -> int:
        """Returns the first global step after `after` that reads a row group; NEVER if none does soon."""
        epoch = max(after, self.start) // self.order.steps_per_epoch
        for number in range(epoch, epoch + 1 + _EPOCHS_AHEAD):
            if number * self.order.steps_per_epoch >= self.stop:
                break
            first = int(self._epoch(number).first[group])
            if after < first < NEVER:
                return first
        return NEVER

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            self._epochs[number] = self._computed(number)
            for old in sorted(self._epochs)[: -(_EPOCHS_AHEAD + 2)]:
                del self._epochs[old]
        return self._epochs[number]

    def _computed(self, number: int) -> _Epoch:
        steps_per_epoch, num_groups = self.order.steps_per_epoch, len(self.index.row_group_ends)
        steps = range(max(self.start, number * steps_per_epoch), min(self.stop, (number + 1) * steps_per_epoch))
        if len(self.ranks) == self.world_size:  # a rank's part of a step is a part of the step's rows
            parts = [self.order.rows(step) for step in steps]
        else:
            parts = [np.concatenate(self.parts(step)) for step in steps]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        groups, at = self.index.groups_of(rows), np.repeat(np.arange(steps.start, steps.stop), list(map(len, parts)))
        first, last = np.full(num_groups, NEVER), np.full(num_groups, -1)
        places = np.full(num_groups, len(rows))
        # Of several values for one place numpy keeps the last one.
        first[groups[::-1]], places[groups[::-1]] = at[::-1], np.arange(len(rows))[::-1]
        last[groups] = at
        count = np.bincount(groups, minlength=num_groups)
        num_bytes = np.bincount(groups, weights=self.index.length[rows], minlength=num_groups)
        length = self.index.group_bytes(np.arange(num_groups))
        is_worth = count * REQUEST_BYTES + num_bytes >= length + REQUEST_BYTES
        return _Epoch(np.argsort(places, kind="stable")[: np.count_nonzero(count)], first, last, length, is_worth)
