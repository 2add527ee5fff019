"""Which rows each unit of work of a loader holds.

A training unit is one rank's part of one global batch, an evaluation unit a run of consecutive rows.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Epochs
from pipeline.dataset.manifest import Manifest
from pipeline.loader.sample_order import Order, Rows


@dataclass(frozen=True)
class Parts:
    """What is trained on, and what is evaluated: rows `first_row` to `first_row + rows` of `split`.

    train_groups: rows that are trained on of each row group of train; the last one may be cut short.
    """

    train_groups: tuple[int, ...]
    split: str
    first_row: int
    rows: int

    @property
    def train_rows(self) -> int:
        """Rows that are trained on."""
        return sum(self.train_groups)


def parts_of(data: Manifest, hold_out: float = 0.0) -> Parts:
    """Returns the parts: train and val, or, of train alone, all but its last rows, and those: a share `hold_out` of it.

    An ingest has shuffled the rows, so the last ones are a random sample. Raises RecipeError where one part is empty.
    """
    groups = data.split("train").row_group_rows
    if not hold_out:
        return Parts(groups, "val", 0, data.split("val").rows)
    rows = sum(groups)
    held = round(hold_out * rows)
    if not 0 < held < rows:
        raise RecipeError(
            f"hold_out={hold_out} leaves nothing of {rows} rows to train on or to evaluate; use 0.1 or so"
        )
    kept, left, trained = rows - held, rows - held, list[int]()
    for size in groups:
        if left > 0:
            trained.append(min(size, left))
            left -= size
    return Parts(tuple(trained), "train", kept, held)


@dataclass(frozen=True)
class TrainUnits:
    """The units of one rank: unit u is its part of global step `first_step + u`, up to `num_steps` in all."""

    order: Order
    num_steps: int
    first_step: int = 0
    world_size: int = 1
    rank: int = 0

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def rows(self, unit: int) -> Rows:
        """Row indices of a unit."""
        return self.order.rows(self.first_step + unit, self.world_size, self.rank)

    def epochs(self, unit: int) -> Epochs:
        """Epoch of a unit, or of each of its rows where the order repeats them."""
        return self.order.epochs(self.first_step + unit, self.world_size, self.rank)


@dataclass(frozen=True)
class EvaluateUnits:
    """Runs of `unit_rows` consecutive rows from `first_row` on, dealt to the ranks in turn.

    The runs are the same for any number of workers, so each row is computed in the same company and every worker
    count gives the same numbers to the last bit.
    """

    num_rows: int
    unit_rows: int
    world_size: int = 1
    rank: int = 0
    first_row: int = 0

    def __len__(self) -> int:
        num_runs = -(-self.num_rows // self.unit_rows)
        return len(range(self.rank, num_runs, self.world_size))

    def rows(self, unit: int) -> Rows:
        """Row indices of a unit."""
        start = (self.rank + unit * self.world_size) * self.unit_rows
        return self.first_row + np.arange(start, min(start + self.unit_rows, self.num_rows), dtype=np.int64)

    def epochs(self, unit: int) -> Epochs:
        """Evaluation knows no epochs."""
        return 0


Units = TrainUnits | EvaluateUnits
