"""Any row of a split by itself: where its image lies, what is known of it, and its bytes.

A shard's images lie one after another, uncompressed, so a row is one read of its own bytes: nothing is read that isn't
needed, whatever the order, and a stream begins at any step at once. Rows that are neighbours are one request to object
storage.
"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DatasetError
from pipeline.core.keyed_random import Keys, key_hash
from pipeline.dataset import row_group_cache as cache
from pipeline.dataset.manifest import Split
from pipeline.dataset.parquet import Rows, read_split_provenance
from pipeline.storage import files as storage
from pipeline.storage.parallel_reads import read_ahead
from pipeline.storage.ranges import coalesce

REMOTE_READERS, REMOTE_PART_ROWS = 32, 32
# A request costs what 500 kB cost (docs/log.md). The most of one: what is in it is there when all of it is.
REMOTE_GAP_BYTES, REMOTE_RANGE_BYTES = 128 << 10, 4 << 20
_CHANGED = "not the bytes that were ingested (CRC-32)"
_REMEDY = "jobs/verify.py lists all that is damaged: restore it, or ingest again"
_COLUMNS = ["key", "label", "height", "width", "bytes", "offset", "crc32"]


@dataclass(frozen=True)
class Range:
    """One request: bytes of a shard that hold rows. row: the first of them; group: where it is a whole one, to keep."""

    shard: int
    offset: int
    length: int
    row: int
    group: int | None = None


@dataclass(frozen=True)
class RowIndex:
    """Where the rows of a split are, in the order of the split; 40 bytes a row.

    paths: of the shards, URIs; shard int32, offset int64, length int32: of each image; crc32 uint32: of its bytes;
    label int32, height and width int32, key_hash uint64 (`draws.key_hash`); row_group_ends int64: of the split. cache:
    a folder on each node where row groups of object storage are kept (`row_group_cache`); empty for none.
    """

    paths: tuple[str, ...]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]
    crc32: npt.NDArray[np.uint32]
    label: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    key_hash: Keys
    row_group_ends: Rows
    cache: str = ""

    def whole_group(self, group: int) -> Range:
        """Returns the request for a row group's images."""
        first = int(self.row_group_ends[group - 1]) if group else 0
        last, offset = int(self.row_group_ends[group]) - 1, int(self.offset[first])
        return Range(int(self.shard[first]), offset, int(self.offset[last] + self.length[last]) - offset, first, group)

    def place(self, row: int) -> str:
        """Says where a row is, for messages: its shard, row group, and row in the split."""
        group = int(np.searchsorted(self.row_group_ends, row, side="right"))
        first = int(np.searchsorted(self.shard, self.shard[row], side="left"))  # of the shard
        before = int(np.searchsorted(self.row_group_ends, first, side="right"))
        return f"{self.paths[self.shard[row]].split('?')[0]}, row group {group - before}, row {row} of the split"


@lru_cache(maxsize=4)
def load_index(uri: str, split: Split) -> RowIndex:
    """Reads the index of a split from its provenance, once for all the streams of a process."""
    table = read_split_provenance(uri, split, _COLUMNS)
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in _COLUMNS[1:]}
    return RowIndex(
        paths=tuple(storage.join(uri, shard.path) for shard in split.shards),
        shard=np.repeat(np.arange(len(split.shards), dtype=np.int32), [shard.rows for shard in split.shards]),
        offset=columns["offset"],
        length=columns["bytes"],
        crc32=columns["crc32"],
        label=columns["label"],
        height=columns["height"],
        width=columns["width"],
        key_hash=key_hash(table["key"].to_pylist()),
        row_group_ends=np.cumsum(split.row_group_rows),
    )


def read_images(index: RowIndex, rows: Rows, corrupt: set[int] | None = None) -> list[memoryview]:
    """Returns the stored bytes of rows, in their order. See `read_parts`."""
    return [image for _, images in read_parts(index, rows, corrupt) for image in images]


def read_parts(
    index: RowIndex, rows: Rows, corrupt: set[int] | None = None
) -> Iterator[tuple[slice, list[memoryview]]]:
    """Yields the stored bytes of rows, in their order, part by part: local ones as one, for the system reads ahead.

    Remote ones come as they arrive, all having been asked for: who works on one part doesn't wait for the next. Those
    that lie near each other are asked for at once.

    Raises DatasetError, with the place, if they have changed. corrupt: a set, to note where in `rows` there are changed
    bytes, instead.
    """
    if storage.is_local(index.paths[0]):
        numbers = zip(index.shard[rows].tolist(), index.offset[rows].tolist(), index.length[rows].tolist(), strict=True)
        images = _read_local(index, rows, list(numbers))
        _check(index, rows, 0, images, corrupt)
        yield slice(0, len(rows)), images
        return
    ranges, range_of = _requests(index, rows)
    needed = dict.fromkeys(range_of.tolist())  # in the order in which they are needed
    pool = _remote_readers(os.getpid())
    reads = read_ahead(pool, lambda number: _read_range(index, ranges[number]), needed, in_order=True)
    arrived: dict[int, memoryview] = {}
    for first in range(0, len(rows), REMOTE_PART_ROWS):
        part = slice(first, min(first + REMOTE_PART_ROWS, len(rows)))
        images = []
        for row, number in zip(rows[part].tolist(), range_of[part].tolist(), strict=True):
            while number not in arrived:
                arrived.update([next(reads)])
            start = int(index.offset[row]) - ranges[number].offset
            images.append(arrived[number][start : start + int(index.length[row])])
        _check(index, rows, first, images, corrupt)
        yield part, images


def coalesce_rows(index: RowIndex, rows: Rows) -> tuple[list[Range], Rows]:
    """Returns the requests that fetch rows, and for each row the number of its request: int64 [N]."""
    found = coalesce(index.shard[rows], index.offset[rows], index.length[rows], REMOTE_GAP_BYTES, REMOTE_RANGE_BYTES)
    range_of = np.empty(len(rows), dtype=np.int64)
    for number, each in enumerate(found):
        range_of[list(each.items)] = number
    return [Range(each.object, each.offset, each.length, int(rows[each.items[0]])) for each in found], range_of


def _requests(index: RowIndex, rows: Rows) -> tuple[list[Range], Rows]:
    """Returns what `coalesce_rows` does, or, of row groups that are kept or have room to be, the whole of them."""
    if not index.cache:
        return coalesce_rows(index, rows)
    groups = np.searchsorted(index.row_group_ends, rows, side="right")
    whole = {group: index.whole_group(group) for group in dict.fromkeys(groups.tolist())}
    missing = {g: each.length for g, each in whole.items() if not cache.is_kept(index.cache, g, each.length)}
    if missing and not cache.has_room(index.cache, sum(missing.values())):
        whole = {group: each for group, each in whole.items() if group not in missing}
    ranges, range_of = list(whole.values()), np.empty(len(rows), dtype=np.int64)
    numbers, apart = {group: number for number, group in enumerate(whole)}, ~np.isin(groups, list(whole))
    range_of[~apart] = [numbers[group] for group in groups[~apart].tolist()]
    others, others_of = coalesce_rows(index, rows[apart])
    range_of[apart] = len(ranges) + others_of
    return ranges + others, range_of


def _check(index: RowIndex, rows: Rows, first: int, images: list[memoryview], corrupt: set[int] | None) -> None:
    crcs = index.crc32[rows[first : first + len(images)]].tolist()
    for number, (image, expected) in enumerate(zip(images, crcs, strict=True), first):
        if zlib.crc32(image) != expected:
            if corrupt is None:
                instead = "--on-corrupt quarantine goes on without such images"
                copy = f"; or remove its copy in {index.cache}" if index.cache else ""
                raise DatasetError(f"{index.place(int(rows[number]))}: {_CHANGED}; {_REMEDY}; {instead}{copy}")
            corrupt.add(number)


def _read_local(index: RowIndex, rows: Rows, numbers: list[tuple[int, int, int]]) -> list[memoryview]:
    files: dict[int, storage.MappedFile] = {}
    images = []
    for wanted in (False, True):  # first the disk is told of all
        for row, (shard, offset, length) in zip(rows.tolist(), numbers, strict=True):
            try:
                if shard not in files:
                    files[shard] = storage.map_file(index.paths[shard])
                if wanted:
                    images.append(files[shard].read(offset, length))
                else:
                    files[shard].prefetch(offset, length)
            except OSError as error:
                raise DatasetError(f"{index.place(row)}: can't be read ({error}); {_REMEDY}") from error
    return images


def _read_range(index: RowIndex, wanted: Range) -> memoryview:
    try:
        place = (index.paths[wanted.shard], wanted.offset, wanted.length)
        if wanted.group is not None:
            return cache.whole_group(index.cache, wanted.group, *place)
        return storage.read_range(*place)
    except OSError as error:
        raise DatasetError(f"{index.place(wanted.row)}: can't be read ({error}); {_REMEDY}") from error


@lru_cache(maxsize=1)
def _remote_readers(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REMOTE_READERS, thread_name_prefix="read")
