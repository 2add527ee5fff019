"""Which rows each unit of work of a loader holds.

A training unit is one rank's part of one global batch, an evaluation unit a run of consecutive rows.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.order import Order, Rows


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

    def epoch(self, unit: int) -> int:
        """Epoch of a unit."""
        return (self.first_step + unit) // self.order.steps_per_epoch


@dataclass(frozen=True)
class EvaluateUnits:
    """Runs of `unit_rows` consecutive rows, dealt to the ranks in turn.

    The runs are the same for any number of workers, so each row is computed in the same company and every worker
    count gives the same numbers to the last bit.
    """

    num_rows: int
    unit_rows: int
    world_size: int = 1
    rank: int = 0

    def __len__(self) -> int:
        num_runs = -(-self.num_rows // self.unit_rows)
        return len(range(self.rank, num_runs, self.world_size))

    def rows(self, unit: int) -> Rows:
        """Row indices of a unit."""
        start = (self.rank + unit * self.world_size) * self.unit_rows
        return np.arange(start, min(start + self.unit_rows, self.num_rows), dtype=np.int64)

    def epoch(self, unit: int) -> int:
        """Evaluation knows no epochs."""
        return 0


Units = TrainUnits | EvaluateUnits
