"""The selection of a run: read from its folder, or chosen by a proxy and written there."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import CheckpointError
from pipeline.core.progress import Progress
from pipeline.evaluation.distributed import gather_objects
from pipeline.loader.sampling.selection import Selection
from pipeline.models.tensor_file import read_tensors, serialize_tensors
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.selection.proxy import chosen_rows
from pipeline.training.worker_data import Batches

SELECTION_NAME = "selection.safetensors"
_KEPT = "kept"


def select_rows(
    job: TrainJob, batches: Batches, progress: Progress, beat: Callable[[str], None]
) -> tuple[Batches, float]:
    """Returns the batches of those rows that the recipe's filter keeps, and the seconds that choosing them took.

    Without a filter, the batches themselves. All ranks together: rank 0 alone trains the proxy, so that the rows are
    the same for any number of workers. A run that is resumed reads what its first start wrote to RUN/; a start that
    ended before that chooses anew, and the same rows where the device repeats its numbers. beat: called with what is
    done, now and then. Raises CheckpointError if the file is damaged or of another run.
    """
    proxy_filter, order = job.recipe.proxy_filter, batches.order
    if proxy_filter is None:
        return batches, 0.0
    place, first, shape = files.join(job.run, SELECTION_NAME), batches.rank == 0, (job.recipe.epochs, order.num_rows)
    found = _read(place, shape) if first and files.exists(place) else None
    packed = gather_objects(found, batches.world_size)[0]
    seconds = 0.0
    if packed is None:
        started = time.perf_counter()
        chosen = chosen_rows(job.recipe, proxy_filter, batches, job.seed) if first else None
        lines: list[Any] = []
        for epoch in range(job.recipe.epochs):
            progress("select", epoch, job.recipe.epochs, f"by the losses of {proxy_filter.model}")
            mask = None if chosen is None else np.packbits(next(chosen))
            lines.append(gather_objects(mask, batches.world_size)[0])
            beat(f"selection of epoch {epoch}")
        packed = np.stack(lines)
        if first:
            files.write_bytes(place, serialize_tensors({_KEPT: torch.from_numpy(packed)}))
        progress("select", job.recipe.epochs, job.recipe.epochs)
        seconds = time.perf_counter() - started
    return batches.selected(Selection.unpacked(proxy_filter, packed, order.num_rows)), seconds


def _read(place: str, shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns uint8 [E, ceil(N / 8)]. shape: (E, N). Raises CheckpointError if the file holds another selection."""
    tensor = read_tensors(place).get(_KEPT)
    if tensor is None or tensor.dtype != torch.uint8 or tensor.shape != (shape[0], -(-shape[1] // 8)):
        raise CheckpointError(f"{place}: holds no selection for {shape[0]} epochs of {shape[1]:,} rows; remove the run")
    return tensor.numpy()


def check_selection(selection: Selection | None, known: str) -> str:
    """Returns the digest of a run's selection, "" for none. known: that of the checkpoint, "" before the first.

    Raises CheckpointError if the checkpoint was trained with another one.
    """
    digest = selection.digest if selection else ""
    if known and known != digest:
        raise CheckpointError(
            f"{SELECTION_NAME}: the checkpoint was trained with another selection of rows; put the run's own file back"
        )
    return digest
