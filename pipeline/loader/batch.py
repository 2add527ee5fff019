"""One batch of a loader, whichever way it was made."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.core.errors import DatasetError
from pipeline.core.keyed_random import Epochs, Keys, epochs_at
from pipeline.loader.sample_order import Rows
from pipeline.loader.stage_times import BatchTiming


@dataclass(frozen=True)
class Batch:
    """N decoded and augmented images with their labels.

    index: position of the batch in its sampler, from 0.
    rows: int64 [N], row numbers in the split.
    images: uint8 [N, 3, S, S], channels_last.
    labels: int64 [N].
    keys: uint64 [N], hashes of the rows' keys; they seed the augmentation of each row.
    positions: int64 [N], positions of the rows in the sampler's batch: 0 to N - 1 unless images were left out.
    corrupt: int64 [M], rows of the sampler's batch that were left out because their images can't be used.
    epochs: the epoch of all rows, or int64 [N].
    timing: how long it took to make the batch; None where it was gathered from memory.
    ready: an event of CUDA after which images and labels are on their device; None where they are there already.
    """

    index: int
    rows: Rows
    images: Tensor
    labels: Tensor
    keys: Keys
    positions: Rows
    corrupt: Rows
    epochs: Epochs = 0
    timing: BatchTiming | None = None
    ready: torch.cuda.Event | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch with images and labels on `device`.

        A batch on its way to a device (`ready`) has arrived for what is launched from now on: the device waits, not the
        host.
        """
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.images.device)
            stream.wait_event(self.ready)
            # Made on another stream, which mustn't reuse the memory before this one is done with it.
            self.images.record_stream(stream)
            self.labels.record_stream(stream)
            return replace(self, ready=None).to(device)
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


def usable_positions(index: int, corrupt: npt.NDArray[np.bool_]) -> Rows:
    """Returns int64, the positions of a batch's rows that are not corrupt.

    index: the batch's, for the message. Raises DatasetError if all rows are corrupt: there is nothing to train on.
    """
    if len(corrupt) and corrupt.all():
        raise DatasetError(f"batch {index}: none of its {len(corrupt)} images can be used; ingest the data set again")
    return np.flatnonzero(~corrupt)


def batch_from_columns(index: int, columns: dict[str, npt.NDArray[Any]], keys: Keys, epochs: Epochs) -> Batch:
    """Returns a batch without its corrupt rows. Raises DatasetError if all are corrupt.

    columns: row, label: int64 [N]; image: uint8 [N, S, S, 3]; corrupt: bool [N]; timing: float64 [5], the fields of
    BatchTiming, where it was measured. keys: uint64, hashes of the keys of all rows of the split. epochs: of the
    N rows.
    """
    positions = usable_positions(index, columns["corrupt"])
    rows, images, labels = columns["row"], columns["image"], columns["label"]
    corrupt = rows[columns["corrupt"]]
    if len(corrupt):
        rows, images, labels = rows[positions], images[positions], labels[positions]
    # A stream's arrays are Ray's read-only shared memory. DLPack takes those without a copy, and without the warning of
    # torch.from_numpy; nothing writes into a batch.
    pixels, targets = from_dlpack(images).permute(0, 3, 1, 2), from_dlpack(labels)
    timing = BatchTiming(*columns["timing"]) if "timing" in columns else None
    return Batch(index, rows, pixels, targets, keys[rows], positions, corrupt, epochs_at(epochs, positions), timing)
