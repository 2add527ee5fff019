"""Cuts sequences into parts: of equal sizes, and parts that are computed when they are read."""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_KEPT = 2  # parts, the latest: a batch may lie in two


def even_split(num_items: int, num_parts: int, part: int) -> tuple[int, int]:
    """Returns [start, stop) of the `part`-th of `num_parts` contiguous parts, whose sizes differ by one at most."""
    # In integers: with floats, neighbouring parts could overlap or leave a gap.
    return part * num_items // num_parts, (part + 1) * num_items // num_parts


class LazyParts:
    """A sequence of int64, cut into parts, of which the last two that were read are kept.

    ends: int64 [P], position after each part. part: computes one by its number. Any number of threads may read.
    """

    def __init__(self, ends: Numbers, part: Callable[[int], Numbers]) -> None:
        self._ends, self._part = ends, part
        self._kept: dict[int, Numbers] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: slice) -> Numbers:
        """Returns int64, the numbers of a slice without a step, as an array of its own."""
        start, stop, _ = places.indices(len(self))
        found = np.empty(max(0, stop - start), dtype=np.int64)
        number, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < len(found):
            first = int(self._ends[number - 1]) if number else 0
            part = self._read(number)[start + done - first : stop - first]
            found[done : done + len(part)] = part
            number, done = number + 1, done + len(part)
        return found

    def _read(self, number: int) -> Numbers:
        with self._lock:  # threads that read neighbouring batches want the same part
            if number not in self._kept:
                self._kept[number] = self._part(number)
                for old in list(self._kept)[:-_KEPT]:
                    del self._kept[old]
            return self._kept[number]
