"""Batches from memory: a split is decoded once and stays there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.choices import OnCorrupt
from pipeline.core.keyed_random import Epochs, Keys, epochs_at
from pipeline.core.progress import Progress, silent
from pipeline.dataset.manifest import Split
from pipeline.dataset.row_reader import load_index
from pipeline.loader.augment import augment_batch, crop_places, gather_crops
from pipeline.loader.batch import Batch, usable_positions
from pipeline.loader.device.send import send
from pipeline.loader.sample_order import Rows
from pipeline.loader.samplers import Sampler
from pipeline.loader.transform import Transform

_ROWS_AT_ONCE = 1000  # bounds the memory for encoded images


@dataclass(frozen=True)
class ResidentSplit:
    """A decoded split.

    images: uint8 [N, 3, S, S], channels_last. labels: int64 [N]. keys: uint64 [N], hashes of the rows' keys. corrupt:
    bool [N], rows whose images can't be used; they are black.
    """

    images: Tensor
    labels: Tensor
    keys: Keys
    corrupt: npt.NDArray[np.bool_]

    def to(self, device: torch.device) -> "ResidentSplit":
        """Returns the split with images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_resident(
    uri: str, split: Split, transform: Transform, progress: Progress = silent, on_corrupt: OnCorrupt = "stop"
) -> ResidentSplit:
    """Returns a whole split, decoded to the size of `transform`; `resident_batches` augments it, batch by batch.

    on_corrupt: "quarantine" marks images that can't be used; otherwise DatasetError is raised for the first one.
    """
    size = transform.size_px
    index = load_index(uri, split)
    plain = Transform(size, transform.resize_px if transform.augment is None else size, decoder=transform.decoder)
    images, corrupt = np.empty((split.rows, size, size, 3), dtype=np.uint8), np.zeros(split.rows, dtype=np.bool_)
    for start in range(0, split.rows, _ROWS_AT_ONCE):
        progress("load", start, split.rows)
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, split.rows))
        unusable: set[int] | None = set() if on_corrupt == "quarantine" else None
        images[rows] = plain.load(index, rows, 0, unusable)
        corrupt[rows[sorted(unusable or ())]] = True
    progress("load", split.rows, split.rows)
    labels = torch.from_numpy(index.label.astype(np.int64))
    return ResidentSplit(torch.from_numpy(images).permute(0, 3, 1, 2), labels, index.key_hash, corrupt)


def resident_batches(data: ResidentSplit, sampler: Sampler, transform: Transform) -> Iterator[Batch]:
    """Yields the sampler's batches from memory, augmented on the device where the split is.

    What the host draws, rows and crops, goes there once an epoch; a batch is then one gather, for which the host
    computes nothing and waits for nothing.
    """
    augment = transform.augment
    # Crops of other sizes come before padded ones, so these can't be taken from the stored images.
    crops_first = augment is not None and augment.crops_or_flips and augment.resized_crop_area is None
    rest = replace(augment, crop_padding_px=0, flip_probability=0.0) if augment and crops_first else augment
    for epoch in _epochs(data, sampler):
        index = send(epoch.rows, data.images.device)
        labels, keys = data.labels[index], data.keys[epoch.rows]
        places: tuple[Tensor, ...] = ()
        if augment is not None and crops_first:
            places = crop_places(data.images, augment, transform.seed, epoch.epochs, keys)
        start = 0
        for number, wanted in epoch.batches.items():
            positions = usable_positions(number, data.corrupt[wanted])
            part = slice(start, start + len(positions))
            start = part.stop
            epochs = epochs_at(epoch.epochs, part)
            if places:
                images = gather_crops(data.images, index[part], *(place[part] for place in places))
            else:
                # Indexed as [N, S, S, 3], the order in memory: a row is one copy and the result is channels_last.
                images = data.images.permute(0, 2, 3, 1)[index[part]].permute(0, 3, 1, 2)
            if rest is not None:
                images = augment_batch(images, rest, transform.seed, epochs, keys[part])
            corrupt = wanted[data.corrupt[wanted]]
            yield Batch(number, epoch.rows[part], images, labels[part], keys[part], positions, corrupt, epochs)


@dataclass(frozen=True)
class _Epoch:
    """The batches of an epoch that are still to come: {number: rows}, their rows that can be used, and their epochs."""

    batches: dict[int, Rows]
    rows: Rows
    epochs: Epochs


def _epochs(data: ResidentSplit, sampler: Sampler) -> Iterator[_Epoch]:
    for numbers in sampler.by_epoch():
        batches = {number: sampler.rows(number) for number in numbers}
        whole = np.concatenate(list(batches.values()))
        epochs = [sampler.epochs(number) for number in numbers]
        usable = ~data.corrupt[whole]
        every = np.concatenate(epochs) if isinstance(epochs[0], np.ndarray) else epochs[0]
        yield _Epoch(batches, whole[usable], epochs_at(every, usable))
