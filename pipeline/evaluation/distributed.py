"""One evaluation by all ranks of a torch.distributed group: each predicts its part, and every rank gets the whole."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.predictions import Predictions, merge
from pipeline.loader.batch import Batch

T = TypeVar("T")


def no_rows() -> Sequence[int]:
    """Returns no rows: nothing is left out."""
    return ()


def gather_objects(value: T, world_size: int) -> list[T]:
    """Returns the `value` of every rank, in the order of ranks. All ranks must call it; one alone needs no group."""
    values: list[Any] = [value]
    if world_size > 1:
        values = [None] * world_size
        torch.distributed.all_gather_object(values, value)
    return values


def predict_distributed(
    predictor: Predictor,
    batches: Iterable[Batch],
    rows: range,
    world_size: int = 1,
    left_out: Callable[[], Sequence[int]] = no_rows,
) -> Predictions:
    """Returns the predictions for `rows`, in row order, the same on every rank. All ranks must call it.

    batches: this rank's part of the rows. left_out: is called once the part is predicted, on all ranks, and returns the
    rows without predictions because their images cannot be decoded. Raises ExactnessError unless every other row is
    there exactly once.
    """
    if world_size > 1:
        # BatchNorm's running statistics differ between ranks after training; rank 0's are the ones that are saved.
        for buffer in predictor.net.buffers():
            torch.distributed.broadcast(buffer, 0)
    parts = gather_objects(predictor.predict(batches), world_size)
    return merge(parts, rows, left_out())
