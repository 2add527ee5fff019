"""Predictions of an evaluation: one line for each row, merged from all workers, written and read as Parquet.

Workers return lines, not sums. The lines are put into row order first, and metrics are computed from all of them, so
the metrics of a checkpoint are the same to the last bit for any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import CheckpointError, DatasetError, ExactnessError
from pipeline.dataset.manifest import Split
from pipeline.dataset.parquet import parquet_bytes, read_rows, read_table
from pipeline.dataset.schema import as_schema
from pipeline.storage import files
from pipeline.storage.places import nearest

PREDICTIONS_NAME = "predictions.parquet"
_AGAIN = "evaluate once more, into another folder"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int64()),
        ("classes", pa.list_(pa.int64())),
        ("probabilities", pa.list_(pa.float32())),
        ("loss", pa.float64()),
    ]
)
Keep = Literal["nothing", "logits", "features"]
TOP = 5  # classes that are kept of each row, best first
# Rows in a batch. Fixed, because the kernels' rounding may depend on the size of a batch.
UNIT_ROWS = 250


@dataclass(frozen=True)
class Predictions:
    """Predictions of N rows, with K = min(5, number of classes) classes each.

    row: int64 [N], indices in the split. label: int64 [N]. classes: int64 [N, K], best first. probabilities: float32
    [N, K], of these classes. loss: float64 [N], without label smoothing. kept: float32 [N, M], logits or features where
    the evaluation keeps them, else M = 0.
    """

    row: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float64]
    kept: npt.NDArray[np.float32]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """bool [N]: whether the best class is the label."""
        correct: npt.NDArray[np.bool_] = self.classes[:, 0] == self.label
        return correct

    def take(self, indices: npt.NDArray[Any]) -> "Predictions":
        """Returns some of the lines. indices: int [M], in the order wanted, or a mask, bool [N]."""
        return Predictions(**{name: getattr(self, name)[indices] for name in Predictions.__dataclass_fields__})


def concatenate(parts: list[Predictions]) -> Predictions:
    """Returns the lines of all parts, one part after the other."""
    parts = [part for part in parts if len(part.row)] or parts[:1]  # an empty part does not know K and M
    fields = Predictions.__dataclass_fields__
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def merge(parts: list[Predictions], rows: range, left_out: Sequence[int] = ()) -> Predictions:
    """Returns the lines of all workers in row order.

    left_out: those of `rows` that have no line, because their images cannot be decoded. Raises ExactnessError unless
    every other one of `rows` is there exactly once.
    """
    together = concatenate(parts)
    merged = together.take(np.argsort(together.row, kind="stable"))
    expected, seen = np.arange(rows.start, rows.stop), [*merged.row.tolist(), *left_out]
    if not np.array_equal(merged.row, np.setdiff1d(expected, np.asarray(left_out, dtype=np.int64))):
        found, counts = np.unique(np.array(seen, dtype=np.int64), return_counts=True)
        raise ExactnessError(
            f"evaluated {len(merged.row)} rows of {len(rows)}: missing {np.setdiff1d(expected, found)[:5].tolist()}, "
            f"more than once {found[counts > 1][:5].tolist()}, foreign {np.setdiff1d(found, expected)[:5].tolist()}"
        )
    return merged


def write_predictions(folder: str, dataset: str, split: Split, predictions: Predictions) -> None:
    """Writes `predictions.parquet`, a line for each row with its key, into `folder`."""
    table = pa.table(
        {
            "row": predictions.row,
            "key": read_rows(dataset, split, predictions.row, ("key",))["key"],
            "label": predictions.label,
            "classes": list(predictions.classes),
            "probabilities": list(predictions.probabilities),
            "loss": predictions.loss,
        }
    )
    files.write_bytes(files.join(folder, PREDICTIONS_NAME), parquet_bytes(table))


def check_predictions(folder: str) -> None:
    """Raises CheckpointError unless the folder of a run or an evaluation holds predictions."""
    if not files.exists(files.join(folder, PREDICTIONS_NAME)):
        raise CheckpointError(
            f"{folder}: no {PREDICTIONS_NAME}; give the folder of a finished run or of an evaluation{nearest(folder)}"
        )


def _lengths(column: pa.ListArray) -> set[int]:
    return set(np.unique(np.diff(column.offsets.to_numpy())).tolist())


def read_predictions(folder: str) -> tuple[Predictions, list[str]]:
    """Returns the predictions in the folder of a run or an evaluation, and the key of each row.

    Raises CheckpointError if there are none, DatasetError if they are damaged.
    """
    check_predictions(folder)
    place = files.join(folder, PREDICTIONS_NAME)
    table = as_schema(read_table(place, remedy=_AGAIN), _SCHEMA, place, _AGAIN)
    lists = {name: table[name].combine_chunks() for name in ("classes", "probabilities")}
    shape = (-1, len(table["classes"][0])) if table.num_rows else (0, TOP)
    if any(_lengths(each) - {shape[1]} or each.flatten().null_count for each in lists.values()):
        raise DatasetError(f"{place}: damaged: its rows have different numbers of classes; {_AGAIN}")
    predictions = Predictions(
        row=table["row"].to_numpy(),
        label=table["label"].to_numpy(),
        classes=lists["classes"].flatten().to_numpy().reshape(shape),
        probabilities=lists["probabilities"].flatten().to_numpy().reshape(shape),
        loss=table["loss"].to_numpy(),
        kept=np.empty((table.num_rows, 0), np.float32),
    )
    return predictions, table["key"].to_pylist()
