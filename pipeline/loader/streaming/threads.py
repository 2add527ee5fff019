"""Batches decoded by threads of this process, without Ray."""

import math
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.config.choices import OnCorrupt
from pipeline.core.keyed_random import Epochs, epochs_at
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.row_reader import RowIndex, load_index
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.sample_order import Rows
from pipeline.loader.samplers import Sampler
from pipeline.loader.transform import Pixels, Transform

# Rows that a thread decodes at a time: few enough that all threads work on one batch, many enough that a call into the
# decoder costs little. A guess, not measured.
_PART_ROWS = 32


def decode_threads() -> int:
    """Returns the number of decoding threads of this process: its share of the node's CPUs, one or more.

    torchrun and Ray Train tell the number of processes on the node in LOCAL_WORLD_SIZE.
    """
    return max(1, usable_cpus() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def local_batches(
    uri: str, split: Split, sampler: Sampler, transform: Transform, on_corrupt: OnCorrupt = "stop"
) -> Generator[Batch]:
    """Yields the sampler's batches, in order, decoded by threads of this process ahead of the consumer.

    At least one whole batch is made ahead, and as many as keep all threads busy; so memory is bounded by a few batches.
    on_corrupt: "quarantine" leaves out images whose bytes have changed or can't be decoded; "stop" raises DatasetError.
    """
    index, threads = load_index(uri, split), decode_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[_PendingBatch] = deque()
        numbers = iter(range(len(sampler)))
        try:
            for number in numbers:
                waiting.append(_submit(pool, index, sampler, number, transform, on_corrupt))
                if len(waiting) > 1 + math.ceil(threads / waiting[0].num_parts):
                    yield waiting.popleft().result(index)
            while waiting:
                yield waiting.popleft().result(index)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _PendingBatch:
    """A batch whose parts are being decoded into `pixels`. Each part's future returns the positions it can't use."""

    number: int
    rows: Rows
    epochs: Epochs
    pixels: Pixels
    parts: list[Future[set[int]]]

    @property
    def num_parts(self) -> int:
        return max(1, len(self.parts))

    def result(self, index: RowIndex) -> Batch:
        """Waits for all parts. Raises what the first part that failed raised."""
        corrupt = np.zeros(len(self.rows), dtype=np.bool_)
        for part in self.parts:
            corrupt[sorted(part.result())] = True
        labels = index.label[self.rows].astype(np.int64)
        columns: dict[str, Any] = {"row": self.rows, "label": labels, "image": self.pixels, "corrupt": corrupt}
        return batch_from_columns(self.number, columns, index.key_hash, self.epochs)


def _submit(
    pool: ThreadPoolExecutor,
    index: RowIndex,
    sampler: Sampler,
    number: int,
    transform: Transform,
    on_corrupt: OnCorrupt,
) -> _PendingBatch:
    rows, epochs = sampler.rows(number), sampler.epochs(number)
    # One size for all parts: they may hold different epochs of a size ramp.
    fixed = transform.at(epochs)
    pixels = np.empty((len(rows), fixed.size_px, fixed.size_px, 3), dtype=np.uint8)

    def load(part: slice) -> set[int]:
        unusable: set[int] | None = set() if on_corrupt == "quarantine" else None
        pixels[part] = fixed.load(index, rows[part], epochs_at(epochs, part), unusable)
        return {position + part.start for position in unusable or ()}

    parts = [slice(start, min(start + _PART_ROWS, len(rows))) for start in range(0, len(rows), _PART_ROWS)]
    return _PendingBatch(number, rows, epochs, pixels, [pool.submit(load, part) for part in parts])


def sample_images(uri: str, manifest: Manifest, split: str, count: int, transform: Transform) -> Tensor:
    """Returns uint8 [N, 3, S, S], N <= `count`: the first rows of a split as evaluation sees them.

    They are a random sample, since an ingest shuffles the rows. Images that can't be decoded are left out.
    """
    plain = Transform(transform.size_px, transform.resize_px, decoder=transform.decoder)
    chosen, corrupt = manifest.split(split), set[int]()
    images = plain.load(load_index(uri, chosen), np.arange(min(count, chosen.rows)), 0, corrupt)
    return torch.from_numpy(np.delete(images, sorted(corrupt), axis=0)).permute(0, 3, 1, 2)
