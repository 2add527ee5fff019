"""How often each row comes in an epoch: whole counts, each within one of its expectation.

The definition, complete enough to recompute it in any language (systematic sampling, Madow 1949):

1. Each row has an expected count, a multiple of 2^-32. All of them add up to a whole number, the rows of an epoch.
2. Rows stand in a line, group after group; a group's rows by their draws (stream SAMPLE, epoch 0). A row takes up as
   much of the line as its expected count.
3. A comb with a tooth at every whole number is laid on the line, shifted to the left by an offset in [0, 1); a row
   comes as often as teeth fall on it. So the count of every row, every group, and every sequence of groups is its
   expectation, rounded up or down, and on average over offsets it is the expectation itself.
4. The offset of epoch e is o + e * d mod 1. o is a draw (stream SAMPLE_OFFSET, epoch 0, key 0). d is the rows' expected
   count where all of them have the same: then epochs of a tenth go through all rows before one comes again. Otherwise d
   is the golden ratio's 0.618..., whose multiples are spread evenly: over many epochs, too, counts stay near their
   expectations.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.core.keyed_random import Stream, bits
from pipeline.loader.sampling.mixture import ONE, Mixture

Counts = npt.NDArray[np.int64]
_GOLDEN = 2654435769  # 2^32 / golden ratio
_MOST_ROWS = 1 << 30  # of an epoch


@dataclass(frozen=True, eq=False)
class ExpectedCounts:
    """The expected count of each row in an epoch.

    units: int64 [N], in units of 2^-32; their sum is a multiple of 2^32. groups: int32 [N], the group of each row.
    step: int, how far the offset moves from epoch to epoch, in the same unit. mixture: shares of several sources, where
    they are stated; the units then say how the rows of one source are to each other.
    """

    units: Counts
    groups: npt.NDArray[np.int32]
    step: int = _GOLDEN
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        if len(self.units) != len(self.groups) or self.total % ONE or self.total < ONE:
            raise ValueError(
                f"expected counts of {len(self.units)} rows add up to {self.total} / 2^32, no whole number"
            )

    @cached_property
    def total(self) -> int:
        """Sum of the units."""
        return int(self.units.sum())

    @property
    def num_samples(self) -> int:
        """Number of rows of an epoch, copies counted."""
        return self.total // ONE

    @cached_property
    def has_copies(self) -> bool:
        """Whether a row may come more than once in an epoch."""
        return self.mixture is not None or bool(self.units.max() > ONE)

    def of_source(self, rows: slice, num_samples: int) -> "ExpectedCounts":
        """Returns the expected counts of a source's rows, when `num_samples` of them come in an epoch."""
        masses = self.units[rows].astype(np.float64)
        part = whole_total(masses * (num_samples / masses.sum()), self.groups[rows])
        return replace(part, step=_GOLDEN)  # the number changes from epoch to epoch

    def counts(self, seed: int, epoch: int) -> Counts:
        """Returns int64 [N]: how often each row comes in an epoch."""
        line, ends = _line(self, seed)
        first = int(bits(seed, 0, Stream.SAMPLE_OFFSET, np.zeros(1, dtype=np.uint64))[0, 0]) >> 32
        offset = (first + epoch * self.step) % ONE
        counts = np.zeros(len(self.units), dtype=np.int64)
        counts[line] = np.diff((ends + offset) >> 32, prepend=0)
        return counts


@lru_cache(maxsize=2)
def _line(expected: ExpectedCounts, seed: int) -> tuple[Counts, Counts]:
    """Returns int64 [M], the rows of the line in its order, and where each of them ends on it."""
    rows = np.flatnonzero(expected.units)
    draws = bits(seed, 0, Stream.SAMPLE, rows.astype(np.uint64))[:, 0]
    line = rows[np.lexsort((draws, expected.groups[rows]))]
    return line, np.cumsum(expected.units[line])


def whole_total(expected: npt.NDArray[np.float64], groups: npt.NDArray[np.int32]) -> ExpectedCounts:
    """Returns expected counts, rounded to the unit, and changed a little so that they add up to a whole number.

    expected: float64 [N], 0 or more. The sum is rounded, to 1 at least. What it lacks is taken from the counts that
    aren't whole, in proportion to what is left to the next whole number: no count passes one. Raises ValueError if they
    add up to more than 2^30.
    """
    if not expected.sum() <= _MOST_ROWS:
        raise ValueError(f"an epoch of {expected.sum():.3g} rows is too long; at most {_MOST_ROWS:,} are possible")
    units = np.rint(expected * ONE).astype(np.int64)
    total = int(units.sum())
    lacking = max(1, (total + ONE // 2) // ONE) * ONE - total
    room = np.where(units % ONE, ONE - units % ONE if lacking > 0 else units % ONE, 0)
    if total < ONE // 2:  # less than half a row is expected, and one is needed
        room = np.where(units > 0, ONE - units, 0)
    size = abs(lacking)
    # A little less than its part for each row, by the largest error of the product; the first rows get what is left.
    part = (room * (size / max(1, int(room.sum())) * (1 - 1e-12))).astype(np.int64)
    left = size - int(part.sum())
    while left > 0:
        places = np.flatnonzero(part < room)[:left]
        part[places] += 1
        left -= len(places)
    whole = units[units > 0]
    same = len(whole) > 0 and bool((whole == whole[0]).all())
    units += part if lacking > 0 else -part
    step = int(units.sum()) // len(whole) if same else _GOLDEN
    return ExpectedCounts(units, groups, step)
