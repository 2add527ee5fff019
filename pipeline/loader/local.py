"""Batches decoded by threads of this process, without Ray."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.row_reader import load_index
from pipeline.loader.batch import Batch
from pipeline.loader.samplers import Sampler
from pipeline.loader.transform import Transform


def local_batches(uri: str, split: Split, sampler: Sampler, transform: Transform) -> Iterator[Batch]:
    """Yields the sampler's batches as a thread of this process makes them, one ahead.

    Raises DatasetError if an image's bytes have changed or can't be decoded.
    """
    index = load_index(uri, split)

    def load(number: int) -> Batch:
        rows, epochs = sampler.rows(number), sampler.epochs(number)
        pixels = torch.from_numpy(transform.load(index, rows, epochs)).permute(0, 3, 1, 2)
        labels = torch.from_numpy(index.label[rows].astype(np.int64))
        return Batch(number, rows, pixels, labels, index.key_hash[rows], np.arange(len(rows)), rows[:0], epochs)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, 0) if len(sampler) else None
        for number in range(len(sampler)):
            assert ahead is not None
            batch, ahead = ahead.result(), pool.submit(load, number + 1) if number + 1 < len(sampler) else None
            yield batch


def sample_images(uri: str, manifest: Manifest, split: str, count: int, transform: Transform) -> Tensor:
    """Returns uint8 [N, 3, S, S], N <= `count`: the first rows of a split as evaluation sees them.

    They are a random sample, since an ingest shuffles the rows. Images that can't be decoded are left out.
    """
    plain = Transform(transform.size_px, transform.resize_px, decoder=transform.decoder)
    chosen, corrupt = manifest.split(split), set[int]()
    images = plain.load(load_index(uri, chosen), np.arange(min(count, chosen.rows)), 0, corrupt)
    return torch.from_numpy(np.delete(images, sorted(corrupt), axis=0)).permute(0, 3, 1, 2)
