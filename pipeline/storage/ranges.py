"""Coalescing of byte ranges: neighbouring pieces of an object are read by one request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[Any] | Sequence[int]


@dataclass(frozen=True)
class Range:
    """One read: `length` bytes at `offset` of an object.

    object: the number of the object. items: the indices of the pieces that lie in the range, sorted by their offset;
    never empty.
    """

    object: int
    offset: int
    length: int
    items: tuple[int, ...]


def coalesce(
    objects: Integers, offsets: Integers, lengths: Integers, max_gap_bytes: int, max_range_bytes: int
) -> list[Range]:
    """Returns the reads that cover every piece once, sorted by object and offset.

    objects, offsets, lengths: int [N]: piece i is `lengths[i]` bytes at `offsets[i]` of object `objects[i]`.
    max_gap_bytes: two pieces are joined if at most so many bytes that nobody asked for lie between them.
    max_range_bytes: size of a read; a larger piece is read alone.
    """
    objects, offsets = np.asarray(objects), np.asarray(offsets)
    ends = offsets + np.asarray(lengths)
    ranges: list[Range] = []
    items: list[int] = []
    current = start = stop = -1

    def close() -> None:
        if items:
            ranges.append(Range(current, start, stop - start, tuple(items)))
            items.clear()

    order = np.lexsort((offsets, objects))
    pieces = zip(order.tolist(), objects[order].tolist(), offsets[order].tolist(), ends[order].tolist(), strict=True)
    for item, number, offset, end in pieces:
        # From the largest end so far: pieces may overlap, or one may lie within another.
        joins = items and number == current and offset - stop <= max_gap_bytes
        if not joins or max(stop, end) - start > max_range_bytes:
            close()
            current, start, stop = number, offset, end
        items.append(item)
        stop = max(stop, end)
    close()
    return ranges
