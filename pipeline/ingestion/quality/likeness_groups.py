"""Groups of images that look alike: near duplicates are searched within them instead of among all pairs.

An inverted file (Jegou et al., "Product quantization for nearest neighbor search", 2011, section IV.A) over thumbnails:
k-means gives centres, each image belongs to the groups of the centres that it is most like, and two near duplicates
share a group nearly always (docs/benchmarks.md). Thumbnails, centres and products are integers, so the groups are the
same on every machine, whatever its CPU, its BLAS and the number of threads.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.progress import Progress, silent

GROUPS_EACH = 6
"""Groups that an image belongs to."""
_ROUNDS = 2  # of k-means; more of them hardly change what is found
_ROUND_IMAGES = 32  # for each group, in a round
_SIDE = 8  # of the thumbnails that are compared
_NORM = 127
_BLOCK_ROWS = 512  # products of so many images with all centres stay in the cache
_TASK_ROWS = 1 << 16

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_SCHEMA = pa.schema([("group", pa.int32())])


def likeness_groups(thumbnails: npt.NDArray[np.uint8], progress: Progress = silent) -> list[Rows]:
    """Returns the groups, each the ascending rows of its images; an image is in GROUPS_EACH of them, or in all.

    thumbnails: uint8 [N, S, S], grey, S a multiple of 8. There are about 4 sqrt(N) groups, of which one holds about
    1.5 sqrt(N) images, more where many images are alike. The cost is N sqrt(N) products of short vectors.
    """
    count = len(thumbnails)
    num_groups = min(count, 2 ** round(math.log2(4 * math.sqrt(max(1, count)))))
    centres = _centres(thumbnails, num_groups)
    each = min(GROUPS_EACH, num_groups)
    starts = range(0, count, _TASK_ROWS)
    nearest = _Nearest(thumbnails, centres, each)
    tables = map_tables(nearest, starts, _SCHEMA, lambda done: progress("group", done, len(starts)), computes=True)
    group = pa.concat_tables(tables)["group"].to_numpy()
    return [rows // each for rows in _rows_of_each(group, num_groups)]


def _centres(thumbnails: npt.NDArray[np.uint8], num_groups: int) -> Vectors:
    """Returns float32 [num_groups, 64] of integers: the means of some images, of norm 127, by k-means on a sample."""
    # The rows of a data set are in a random order, so rows that are chosen evenly are a random sample.
    centres = _vectors(thumbnails[_evenly(len(thumbnails), num_groups)])
    sample = _vectors(thumbnails[_evenly(len(thumbnails), num_groups * _ROUND_IMAGES)])
    for _ in range(_ROUNDS):
        members = _rows_of_each(_nearest_centres(sample, centres, 1).ravel(), num_groups)
        sums = np.stack([sample[rows].sum(axis=0, dtype=np.int64) for rows in members])
        centres = np.where(sums.any(axis=1, keepdims=True), _of_equal_norm(sums), centres)
    return centres


def _evenly(count: int, wanted: int) -> Rows:
    return np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)


def _rows_of_each(group: npt.NDArray[np.int32], num_groups: int) -> list[Rows]:
    """Returns the ascending rows of each group."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.searchsorted(group[order], np.arange(1, num_groups)))


def _vectors(thumbnails: npt.NDArray[np.uint8]) -> Vectors:
    """Returns float32 [N, 64] of integers: thumbnails at 8x8 less their mean, of norm 127 or, if they are flat, 0."""
    part = thumbnails.shape[1] // _SIDE
    small = thumbnails.reshape(-1, _SIDE, part, _SIDE, part).astype(np.int64).sum(axis=(2, 4)).reshape(-1, _SIDE**2)
    return _of_equal_norm(_SIDE**2 * small - small.sum(axis=1, keepdims=True))


def _of_equal_norm(vectors: Rows) -> Vectors:
    """Returns the vectors with the norm 127, rounded to integers. Square root and quotient are exact by IEEE 754."""
    norms = np.sqrt((vectors**2).sum(axis=1, keepdims=True).astype(np.float64))
    return np.rint(_NORM * vectors / np.maximum(norms, 1)).astype(np.float32)


def _nearest_centres(vectors: Vectors, centres: Vectors, each: int) -> npt.NDArray[np.int32]:
    """Returns int32 [N, each]: the centres with the largest products with each vector, the largest first."""
    nearest = np.empty((len(vectors), each), dtype=np.int32)
    for first in range(0, len(vectors), _BLOCK_ROWS):
        # Sums of integers below 2 ** 24: exact in float32, in any order.
        products = vectors[first : first + _BLOCK_ROWS] @ centres.T
        every = np.arange(len(products))
        for number in range(each):
            best = products.argmax(axis=1)  # of equal ones the first
            nearest[first : first + _BLOCK_ROWS, number] = best
            products[every, best] = -np.inf
    return nearest


@dataclass(frozen=True)
class _Nearest:
    """Finds the groups of images; runs in a Ray task."""

    thumbnails: npt.NDArray[np.uint8]
    centres: Vectors
    each: int

    def __call__(self, start: int) -> pa.Table:
        """Returns a table of _SCHEMA: the groups of the images from row `start` on, `each` of them an image."""
        vectors = _vectors(self.thumbnails[start : start + _TASK_ROWS])
        return pa.table([_nearest_centres(vectors, self.centres, self.each).ravel()], schema=_SCHEMA)
