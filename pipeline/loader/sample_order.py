"""The training order of rows: (data set, seed, epoch) -> permutation -> the global batch of every step.

Pure numpy, no Ray. The definition, complete enough to recompute it in any language:

1. The row groups of a split are numbered 0, 1, ... in manifest order, its rows likewise.
2. In each epoch the row groups are sorted by a random draw per number (`keyed_random.permutation`, stream ROW_GROUP).
3. Each `window_row_groups` consecutive ones form a window; the rows of a window are sorted by the draw of their number
   (stream ROW). One window over everything (`None`) is a full permutation. With `run_rows` = L > 1, which lets object
   storage return L rows per request, each row group of a window is cut into runs of L rows, the last one possibly
   shorter; the runs are sorted by the draw of their first row (stream RUN), and the rows of each 4 runs by their own
   draw.
4. The epoch's n rows are cut into S = ceil(n / global_batch_size) consecutive global batches: batch s holds the
   positions from s*n//S to (s+1)*n//S. Their sizes differ by one row at most and none is larger than
   `global_batch_size`, so there is no tiny last batch, and no row is dropped or repeated.
5. Rank r of W takes the positions from r*m//W to (r+1)*m//W of a global batch of m rows. Where samples are mixed
   (`pairs`), positions 2k and 2k+1 stay together: rank r takes the pairs from r*p//W to (r+1)*p//W of p = ceil(m/2).
6. With `repeats` = R, epochs come in rounds of R, each in the order of its first epoch. A round's n rows are cut into
   R*S parts; batch s holds part s R times, one copy after the other, copy c augmented as in the round's epoch c. So R
   epochs hold the same samples as without repeats, and the versions of an image share a batch.
7. With a `selection`, a global batch keeps some of its rows, in their order; point 5 then shares out those.

Only point 5 depends on the world size, so the global batches are the same for any number of workers.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.config.recipe import Recipe
from pipeline.core.keyed_random import COPY_EPOCHS, Epochs, Stream, bits, permutation, sorted_by_draw
from pipeline.core.partition import LazyParts, even_split
from pipeline.loader.sampling.counts import ExpectedCounts
from pipeline.loader.sampling.mixture import Mixture
from pipeline.loader.sampling.selection import Selection

Rows = npt.NDArray[np.int64]
# Runs whose rows are shuffled together, so that neighbours in a row group aren't always neighbours in a batch, where
# MixUp and CutMix would mix the same pairs in every epoch.
RUNS_TOGETHER = 4
_COPY_BITS = 40  # of a number in the order: a row below, the number of its copy above


def num_steps(num_rows: int, global_batch_size: int) -> int:
    """Returns the number of global batches of an epoch: ceil(num_rows / global_batch_size)."""
    return -(-num_rows // global_batch_size)


@dataclass(frozen=True, eq=False)
class Order:
    """The order of one split's rows in every epoch.

    row_group_rows: rows of each row group, in manifest order. window_row_groups: row groups that are shuffled together;
    None for all. pairs: whether workers take whole pairs of rows. repeats: versions of an image in one batch;
    `global_batch_size` must be a multiple. run_rows: consecutive rows that stay close in the order. expected: count of
    each row in an epoch; None for every row once. selection: of each batch's rows, those that are trained on; None for
    all.

    Raises ValueError for values that can't work.
    """

    row_group_rows: tuple[int, ...]
    seed: int
    global_batch_size: int
    window_row_groups: int | None = None
    pairs: bool = False
    repeats: int = 1
    run_rows: int = 1
    expected: ExpectedCounts | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        rows = sum(self.row_group_rows)
        if rows < 1:
            raise ValueError("row_group_rows holds no row; an order needs at least one")
        if self.expected is not None and len(self.expected.units) != rows:
            raise ValueError(f"expected holds counts of {len(self.expected.units)} rows; the row groups hold {rows}")
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size={self.global_batch_size} must be 1 or more")
        if self.repeats < 1 or self.global_batch_size % self.repeats:
            raise ValueError(f"repeats={self.repeats} must divide global_batch_size={self.global_batch_size}")
        if self.run_rows < 1:
            raise ValueError(f"run_rows={self.run_rows} must be 1 or more")
        if self.selection is not None and (self.repeats > 1 or self.selection.kept.shape[1] != self.num_rows):
            raise ValueError(f"a selection of {self.selection.kept.shape[1]} rows needs as many, and repeats=1")
        if self.window_row_groups is not None and self.window_row_groups < 1:
            raise ValueError(f"window_row_groups={self.window_row_groups} must be 1 or more, or None for all")
        hash(self), self.steps_per_epoch  # computed once, and pickled with the order

    # Cached: sums over the row groups, of which there may be tens of thousands, and their hash, would take longer in
    # every step than all else.
    @cached_property
    def num_rows(self) -> int:
        """Number of rows of an epoch: those of the split, or as many as are expected."""
        return self.expected.num_samples if self.expected else sum(self.row_group_rows)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return num_steps(self.num_rows, self.global_batch_size)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything that decides the order."""
        values = (self.seed, self.global_batch_size, self.window_row_groups, self.pairs, self.repeats, self.run_rows)
        digest = hashlib.sha256(repr(values).encode())
        digest.update(np.asarray(self.row_group_rows, dtype=np.int64).tobytes())
        if self.expected is not None:
            digest.update(repr((self.expected.step, self.expected.mixture)).encode() + self.expected.units.tobytes())
            digest.update(self.expected.groups.tobytes())
        if self.selection is not None:
            digest.update(self.selection.digest.encode())
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def epoch_rows(self, epoch: int) -> Rows:
        """Returns int64 [num_rows]: the row numbers of this epoch in their order; without `expected`, each once."""
        return _rows_of(_epoch(self, epoch)[:])

    def batch_size(self, global_step: int) -> int:
        """Returns the number of rows of a global batch: `global_batch_size` or a little less, or what is kept."""
        start, stop = self.span(global_step)
        size = self.repeats * (stop - start)
        return size if self.selection is None else self.selection.proxy_filter.num_kept(size)

    @cached_property
    def trained_rows(self) -> int:
        """Number of rows of an epoch that are trained on: all, or those of the selection."""
        if self.selection is None:
            return self.num_rows
        return sum(self.batch_size(step) for step in range(self.steps_per_epoch))

    def span(self, global_step: int) -> tuple[int, int]:
        """Returns where the images of a step start and end in the order of its round of epochs."""
        steps = self.repeats * self.steps_per_epoch
        return even_split(self.num_rows, steps, global_step % steps)

    def _images(self, global_step: int) -> Rows:
        """Returns int64, the numbers of a step's images (see `_epoch`) in the order of its round of epochs."""
        epoch = global_step // self.steps_per_epoch
        start, stop = self.span(global_step)
        numbers = _epoch(self, epoch // self.repeats * self.repeats)[start:stop]
        return numbers if self.selection is None else numbers[self.selection.kept[epoch, start:stop]]

    def _part(self, size: int, world_size: int, rank: int) -> tuple[int, int]:
        """Returns where a rank's part of a global batch of `size` rows starts and ends."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must lie in [0, {world_size})")
        if self.pairs:
            first, last = (min(size, 2 * place) for place in even_split(-(-size // 2), world_size, rank))
            return first, last
        return even_split(size, world_size, rank)

    def rows(self, global_step: int, world_size: int = 1, rank: int = 0) -> Rows:
        """Returns int64, the row numbers that `rank` of `world_size` trains on in a step.

        global_step: counted over all epochs, from 0.
        """
        images = _rows_of(self._images(global_step))
        first, last = self._part(self.repeats * len(images), world_size, rank)
        return images[first:last] if self.repeats == 1 else np.tile(images, self.repeats)[first:last]

    def epochs(self, global_step: int, world_size: int = 1, rank: int = 0) -> Epochs:
        """Returns the epoch that seeds the augmentation of the step's rows; with copies, int64, one for each row."""
        epoch = global_step // self.steps_per_epoch
        has_copies = self.expected is not None and self.expected.has_copies
        if self.repeats == 1 and not has_copies:
            return epoch
        numbers = self._images(global_step)
        first, last = self._part(self.repeats * len(numbers), world_size, rank)
        epochs = epoch // self.repeats * self.repeats + np.repeat(np.arange(self.repeats), len(numbers))
        if has_copies:
            epochs += np.tile((numbers >> _COPY_BITS) * COPY_EPOCHS, self.repeats)
        return epochs[first:last]


def training_order(
    recipe: Recipe, row_group_rows: tuple[int, ...], seed: int, expected: ExpectedCounts | None = None
) -> Order:
    """Returns the order in which a recipe trains on a split.

    row_group_rows: rows of each row group, in manifest order. seed: of the run. expected: of each row, where the recipe
    samples (`pipeline.loader.sampling.plan.expected_counts`).
    """
    return Order(
        row_group_rows,
        seed,
        recipe.global_batch_size,
        recipe.shuffle_window_row_groups,
        recipe.augment.mixes,
        recipe.repeats,
        recipe.shuffle_run_rows,
        expected,
    )


def _rows_of(numbers: Rows) -> Rows:
    return numbers & ((1 << _COPY_BITS) - 1)


@lru_cache(maxsize=2)
def _epoch(order: Order, epoch: int) -> LazyParts:
    """Returns the rows of an epoch in order, each with the number of its copy in the upper bits.

    Windows are shuffled when they are read. What stays in memory are the order of the row groups, and 4 bytes a row
    where one window is over everything.
    """
    expected, groups = order.expected, np.arange(len(order.row_group_rows))
    if expected is None:
        if order.run_rows == 1 and (order.window_row_groups or len(groups)) >= len(groups):
            return sorted_by_draw(order.seed, epoch, Stream.ROW, order.num_rows)
        return _in_windows(order, epoch, groups, None)
    if expected.mixture is None:
        return _in_windows(order, epoch, groups, expected.counts(order.seed, epoch))
    numbers = _mixed(order, epoch, expected, expected.mixture)
    return LazyParts(np.array([len(numbers)]), lambda _: numbers)


def _in_windows(order: Order, epoch: int, row_groups: Rows, counts: Rows | None) -> LazyParts:
    """Returns the rows of some row groups in order, window after window; see `_epoch`.

    counts: int64 [rows of the split], how often each comes; None for once.
    """
    sizes = np.asarray(order.row_group_rows, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    window = order.window_row_groups or len(row_groups)
    groups = row_groups[permutation(order.seed, epoch, Stream.ROW_GROUP, row_groups.astype(np.uint64))]

    def shuffled(number: int) -> Rows:
        members = np.sort(groups[number * window : (number + 1) * window])
        within = _counted(sizes[members])
        rows = np.repeat(starts[members], sizes[members]) + within
        numbers = rows if counts is None else _numbers(rows, counts[rows])
        drawn = permutation(order.seed, epoch, Stream.ROW, numbers.astype(np.uint64))
        if order.run_rows > 1:
            begins = within % order.run_rows == 0
            runs = _inverse(permutation(order.seed, epoch, Stream.RUN, rows[begins].astype(np.uint64)))
            together = runs[np.cumsum(begins) - 1] // RUNS_TOGETHER
            together = together if counts is None else np.repeat(together, counts[rows])
            drawn = np.lexsort((_inverse(drawn), together))
        return numbers[drawn]

    samples = sizes if counts is None else np.add.reduceat(counts, starts)
    return LazyParts(np.cumsum(np.add.reduceat(samples[groups], np.arange(0, len(groups), window))), shuffled)


def _mixed(order: Order, epoch: int, expected: ExpectedCounts, mixture: Mixture) -> Rows:
    """Returns int64, the rows of an epoch of a mixture, or of a round of epochs, as `_in_windows` does."""
    num_batches = order.repeats * order.steps_per_epoch
    cuts = [even_split(order.num_rows, num_batches, batch) for batch in range(num_batches)]
    sizes = np.array([stop - start for start, stop in cuts])
    taken = mixture.step_counts(epoch * order.steps_per_epoch, sizes)
    numbers, batches = [], []
    for source, (groups, rows) in enumerate(mixture.parts(order.row_group_rows)):
        if num_samples := int(taken[:, source].sum()):
            counts = np.zeros(len(expected.units), dtype=np.int64)
            counts[rows] = expected.of_source(rows, num_samples).counts(order.seed, epoch)
            numbers.append(_in_windows(order, epoch, np.arange(groups.start, groups.stop), counts)[:])
            batches.append(np.repeat(np.arange(num_batches), taken[:, source]))
    together = np.concatenate(numbers)
    draws = bits(order.seed, epoch, Stream.MIXTURE, together.astype(np.uint64))[:, 0]
    return together[np.lexsort((draws, np.concatenate(batches)))]


def _numbers(rows: Rows, counts: Rows) -> Rows:
    """Returns int64: each row as often as it comes, with the number of its copy in the upper bits."""
    return np.repeat(rows, counts) + (_counted(counts) << _COPY_BITS)


def _counted(sizes: Rows) -> Rows:
    """Returns int64 [sum of sizes]: 0, 1, ... up to each size, one after another."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _inverse(permuted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    places = np.empty_like(permuted)
    places[permuted] = np.arange(len(permuted))
    return places
