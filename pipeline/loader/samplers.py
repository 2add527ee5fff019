"""Samplers: the rows of each batch that one worker makes, in order.

A training batch is one rank's part of one global batch; an evaluation batch is a run of consecutive rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Epochs
from pipeline.dataset.manifest import Manifest
from pipeline.loader.sample_order import Order, Rows
from pipeline.loader.sampling.counts import ExpectedCounts
from pipeline.loader.sampling.plan import expected_counts


@dataclass(frozen=True)
class TrainEvalSplit:
    """Rows to train on and rows to evaluate: `first_row` to `first_row + rows` of `split`.

    train_row_groups: number of training rows in each row group of train; the last one may be cut short. expected: count
    of each training row in an epoch; None for every row once.
    """

    train_row_groups: tuple[int, ...]
    split: str
    first_row: int
    rows: int
    expected: ExpectedCounts | None = None

    @property
    def train_rows(self) -> int:
        """Number of rows that aren't held out."""
        return sum(self.train_row_groups)

    @property
    def epoch_rows(self) -> int:
        """Number of rows of an epoch, copies counted."""
        return self.expected.num_samples if self.expected else self.train_rows


def train_eval_split(data: Manifest, hold_out: float = 0.0) -> TrainEvalSplit:
    """Returns train and val; or, with `hold_out`, train without its last rows, and those: a share `hold_out` of it.

    The last rows are a random sample, since an ingest shuffles the rows. Raises RecipeError if either part is empty.
    """
    groups = data.split("train").row_group_rows
    if not hold_out:
        return TrainEvalSplit(groups, "val", 0, data.split("val").rows)
    if data.sources:
        raise RecipeError(f"hold_out={hold_out}: the last rows of a mixture are all of one source; leave it out")
    rows = sum(groups)
    held_out = round(hold_out * rows)
    if not 0 < held_out < rows:
        raise RecipeError(
            f"hold_out={hold_out} leaves nothing of {rows} rows to train on or to evaluate; use 0.1 or so"
        )
    first_row = left = rows - held_out
    train_row_groups = []
    for size in groups:
        if left > 0:
            train_row_groups.append(min(size, left))
            left -= size
    return TrainEvalSplit(tuple(train_row_groups), "train", first_row, held_out)


def training_split(uri: str, data: Manifest, recipe: Recipe, hold_out: float = 0.0) -> TrainEvalSplit:
    """Returns `train_eval_split` with the expected counts that a recipe's sampling gives the rows to train on.

    uri: of the data set; its rows' index is read where the recipe samples. Raises RecipeError if that can't be done.
    """
    parts = train_eval_split(data, hold_out)
    return replace(parts, expected=expected_counts(uri, data, recipe.sampling, parts.train_rows))


@dataclass(frozen=True)
class TrainSampler:
    """The batches of one rank: batch i is its part of global step `first_step + i`, up to global step `num_steps`."""

    order: Order
    num_steps: int
    first_step: int = 0
    world_size: int = 1
    rank: int = 0

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def step(self, index: int) -> int:
        """Returns the global step of a batch."""
        return self.first_step + index

    def rows(self, index: int) -> Rows:
        """Returns int64, the row numbers of a batch."""
        return self.order.rows(self.first_step + index, self.world_size, self.rank)

    def epochs(self, index: int) -> Epochs:
        """Returns the epoch of a batch, or of each of its rows where the order repeats them."""
        return self.order.epochs(self.first_step + index, self.world_size, self.rank)

    def by_epoch(self) -> Iterator[range]:
        """Yields the indices of the batches of each epoch."""
        steps, first = self.order.steps_per_epoch, self.first_step
        while first < self.num_steps:
            last = min(self.num_steps, (first // steps + 1) * steps)
            yield range(first - self.first_step, last - self.first_step)
            first = last


@dataclass(frozen=True)
class EvaluationSampler:
    """Batches of `batch_rows` consecutive rows from `first_row` on, dealt to the ranks in turn.

    The batches don't depend on the number of workers, so that a row is always computed in the same batch and every
    world size gives the same numbers to the last bit. selected: int64, the rows that are evaluated; `first_row` and
    `num_rows` then count those. None for all.
    """

    num_rows: int
    batch_rows: int
    world_size: int = 1
    rank: int = 0
    first_row: int = 0
    selected: Rows | None = None

    def __len__(self) -> int:
        num_batches = -(-self.num_rows // self.batch_rows)
        return len(range(self.rank, num_batches, self.world_size))

    def step(self, index: int) -> int:
        """Returns the position of a batch."""
        return index

    def rows(self, index: int) -> Rows:
        """Returns int64, the row numbers of a batch."""
        start = (self.rank + index * self.world_size) * self.batch_rows
        places = self.first_row + np.arange(start, min(start + self.batch_rows, self.num_rows), dtype=np.int64)
        return places if self.selected is None else self.selected[places]

    def epochs(self, index: int) -> Epochs:
        """Returns 0: evaluation has no epochs."""
        return 0

    def by_epoch(self) -> Iterator[range]:
        """Yields the indices of all batches; no range where there is none."""
        yield from [range(len(self))] if len(self) else []


Sampler = TrainSampler | EvaluationSampler
