"""Several data sets in stated shares: how many rows of each source come in each step of an epoch.

The definition, complete enough to recompute it in any language:

1. A step of m rows expects m * p of a source whose share is p at this step, between two stages linearly. Shares are
   multiples of 2^-32 that add up to 1: each cumulative sum is rounded.
2. A source's rows in the steps 0 to s of an epoch are the sum of what these steps expect, rounded up or down; and all
   sources together fill each step. Where one of several sources may have the next row, the one whose sum reaches the
   next whole number first has it, and among equals the first one. (Earliest deadline first finds such numbers whenever
   there are any; and there are, since matrices can be rounded consistently.)
3. The rows of a source in an epoch are sampled by its expected counts, multiplied so that they add up to its number,
   and stand in the order of `sample_order.py` (points 2 and 3), as if it were alone. Each step takes the next ones.
4. The rows of a step are sorted by the draws of their numbers (stream MIXTURE).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
ONE = 1 << 32  # shares and expected counts are in units of 1 / ONE


@dataclass(frozen=True)
class Mixture:
    """The sources of a mixture, in the order of their rows, and their shares.

    row_groups: number of row groups of each source. stages: (step, share of each source), by step; the shares of a
    stage add up to 1.
    """

    row_groups: tuple[int, ...]
    stages: tuple[tuple[int, tuple[float, ...]], ...]

    def shares(self, steps: Numbers) -> Numbers:
        """Returns int64 [steps, sources]: the shares at each step, in units of 2^-32; they add up to 2^32."""
        at = [step for step, _ in self.stages]
        columns = [np.interp(steps, at, [shares[source] for _, shares in self.stages]) for source in self._sources]
        sums = np.rint(np.cumsum(columns, axis=0) * ONE).astype(np.int64).T
        sums[:, -1] = ONE
        return np.diff(sums, axis=1, prepend=0)

    @property
    def _sources(self) -> range:
        return range(len(self.row_groups))

    def step_counts(self, first_step: int, sizes: Numbers) -> Numbers:
        """Returns int64 [steps, sources]: how many rows of each source come in the steps of an epoch.

        first_step: of the epoch, counted over all epochs. sizes: int64 [steps], rows of each step.
        """
        steps = first_step + np.arange(len(sizes))
        expected = np.cumsum(self.shares(steps) * sizes[:, None], axis=0)
        return np.array(list(_fill(expected, sizes.tolist())), dtype=np.int64)

    def parts(self, row_group_rows: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
        """Yields the row groups and the rows of each source."""
        ends = np.cumsum((0, *row_group_rows)).tolist()
        first = 0
        for count in self.row_groups:
            yield slice(first, first + count), slice(ends[first], ends[first + count])
            first += count


def _fill(expected: Numbers, sizes: list[int]) -> Iterator[list[int]]:
    """Yields the number of rows of each source in each step.

    expected: int64 [steps, sources], what the steps up to each of them expect together, in units of 2^-32.
    """
    sources, steps = range(expected.shape[1]), len(sizes)
    given = [0] * len(sources)
    columns = [np.ascontiguousarray(expected[:, source]) for source in sources]
    for size, now in zip(sizes, expected.tolist(), strict=True):
        counts = [max(0, now[source] // ONE - given[source]) for source in sources]
        left = size - sum(counts)
        if left:
            total = [given[source] + counts[source] for source in sources]
            able = [source for source in sources if total[source] * ONE < now[source]]
            due = {source: int(np.searchsorted(columns[source], (total[source] + 1) * ONE)) for source in able}
            for source in sorted(able, key=lambda source: min(due[source], steps))[:left]:
                counts[source] += 1
        given = [before + count for before, count in zip(given, counts, strict=True)]
        yield counts
