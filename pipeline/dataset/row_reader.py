"""Reads the stored bytes of any rows of a split, in any order.

The images of a shard lie one after another, uncompressed, so a row is read by its offset alone, and a stream can begin
at any step. From object storage, neighbouring rows are read by one request (`storage/ranges.py`), or whole row groups
through a cache on the node's disk (`row_group_cache.py`).
"""

import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DatasetError
from pipeline.core.keyed_random import Keys, key_hash
from pipeline.dataset.manifest import Split, load
from pipeline.dataset.on_node.shared_columns import Columns, load_columns, map_columns
from pipeline.dataset.parquet import read_shard_provenance
from pipeline.dataset.records import Rows, content_of
from pipeline.dataset.row_group_cache import RowGroupCache
from pipeline.storage import files
from pipeline.storage.parallel_reads import read_ahead
from pipeline.storage.ranges import coalesce

REMOTE_READERS = 32  # requests in flight for each process
REMOTE_PART_ROWS = 32
# One request costs as much time as 500 kB of transfer (docs/log.md), so a gap of 128 KiB is cheaper than another
# request. No row of a range is there before the whole range, so ranges stay small.
REQUEST_BYTES, REMOTE_GAP_BYTES, REMOTE_RANGE_BYTES = 500_000, 128 << 10, 4 << 20
_CHANGED = "not the bytes that were ingested (CRC-32)"
_REMEDY = "jobs/verify.py lists all that is damaged: restore it, or ingest again"
# Wide numbers first, so that all are aligned in a file. Then, for those that aren't computed, the stored columns.
_LAYOUT = {
    "offset": "int64",
    "key_hash": "uint64",
    "shard": "int32",
    "length": "int32",
    "crc32": "uint32",
    "label": "int32",
    "height": "int32",
    "width": "int32",
}
_STORED = {name: "bytes" if name == "length" else name for name in _LAYOUT if name not in ("key_hash", "shard")}


@dataclass(frozen=True)
class Request:
    """One request to object storage: `length` bytes at `offset` of a shard, which hold one or more rows."""

    shard: int  # index in `RowIndex.paths`
    offset: int
    length: int
    row: int  # the first row in it, for messages
    group: int | None = None  # the row group, if it is a whole one, to be cached


@dataclass(frozen=True)
class IndexFile:
    """A file of this node that holds the columns of an index."""

    uri: str  # of the data set
    content: str  # identifies the split, see `content_of`
    path: str
    rows: int


@dataclass(frozen=True)
class RowIndex:
    """Where the image of each row lies, and what is known of it, in the order of the split; 40 bytes a row."""

    paths: tuple[str, ...]  # URIs of the shards
    shard: npt.NDArray[np.int32]  # [N], index in `paths`
    offset: npt.NDArray[np.int64]  # [N], of the image's first byte in the shard
    length: npt.NDArray[np.int32]  # [N], bytes of the image
    crc32: npt.NDArray[np.uint32]  # [N], of these bytes
    label: npt.NDArray[np.int32]  # [N]
    height: npt.NDArray[np.int32]  # [N], pixels
    width: npt.NDArray[np.int32]  # [N], pixels
    key_hash: Keys  # [N], see `keyed_random.key_hash`
    row_group_ends: Rows  # [row groups], index of the first row after each
    cache: RowGroupCache | None = None  # on each node, for row groups of object storage; None for none
    file: IndexFile | None = None  # that the columns are mapped from; None if they are in memory

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy for another process maps the file again, instead of taking the columns along."""
        columns = None if self.file else {name: getattr(self, name) for name in _LAYOUT}
        return _restored, (self.paths, columns, self.row_group_ends, self.cache, self.file)

    def group_bytes(self, groups: Rows) -> Rows:
        """Returns int64 [N]: the bytes from the first image to the last of each row group."""
        first = np.where(groups > 0, self.row_group_ends[groups - 1], 0)
        last = self.row_group_ends[groups] - 1
        return self.offset[last] + self.length[last] - self.offset[first]

    def groups_of(self, rows: Rows) -> Rows:
        """Returns int64 [N], the row groups of rows."""
        return np.searchsorted(self.row_group_ends, rows, side="right")

    def whole_group(self, group: int) -> Request:
        """Returns the request for the images of a row group."""
        first = int(self.row_group_ends[group - 1]) if group else 0
        last, offset = int(self.row_group_ends[group]) - 1, int(self.offset[first])
        length = int(self.offset[last] + self.length[last]) - offset
        return Request(int(self.shard[first]), offset, length, first, group)

    def place(self, row: int) -> str:
        """Returns the place of a row for messages: its shard, row group, and index in the split."""
        group = int(self.groups_of(np.array([row]))[0])
        first_of_shard = int(np.searchsorted(self.shard, self.shard[row], side="left"))
        groups_before = int(np.searchsorted(self.row_group_ends, first_of_shard, side="right"))
        return f"{self.paths[self.shard[row]].split('?')[0]}, row group {group - groups_before}, row {row} of the split"


def load_index(uri: str, split: Split) -> RowIndex:
    """Returns the index of a split, read from its provenance by one process of the node; the last 4 are kept."""
    return _load(uri, _BySplit(split, content_of(split)))


@dataclass(frozen=True)
class _BySplit:
    """A split that is compared by its content: versions repeat much in each shard."""

    split: Split = field(compare=False)
    content: str


@lru_cache(maxsize=4)
def _load(uri: str, known: _BySplit) -> RowIndex:
    split = known.split
    rows = sum(shard.live_rows for shard in split.shards)
    columns, path = load_columns(known.content, _LAYOUT, rows, lambda: _column_parts(uri, split))
    paths = tuple(files.resolve(uri, shard.path) for shard in split.shards)
    file = IndexFile(uri, known.content, path, rows) if path else None
    return _restored(paths, columns, np.cumsum(split.row_group_rows), None, file)


def _column_parts(uri: str, split: Split) -> Iterator[Columns]:
    """Yields the columns of an index, shard after shard."""
    for number, table in enumerate(read_shard_provenance(uri, split, ["key", *_STORED.values()])):
        columns = {name: table[stored].to_numpy() for name, stored in _STORED.items()}
        shard = np.full(table.num_rows, number, dtype=np.int32)
        yield {**columns, "shard": shard, "key_hash": key_hash(table["key"])}


def _restored(
    paths: tuple[str, ...],
    columns: Mapping[str, Any] | None,
    row_group_ends: Rows,
    cache: RowGroupCache | None,
    file: IndexFile | None,
) -> RowIndex:
    """Returns an index. columns: None for those of `file`, which another process has mapped, maybe on another node."""
    if columns is None and file is not None:
        with suppress(OSError):  # it may go at this moment
            columns = map_columns(file.path, _LAYOUT, file.rows)
        if columns is None:
            here = _load_content(file.uri, file.content)
            columns, file = {name: getattr(here, name) for name in _LAYOUT}, here.file
    return RowIndex(paths=paths, row_group_ends=row_group_ends, cache=cache, file=file, **(columns or {}))


@lru_cache(maxsize=4)
def _load_content(uri: str, content: str) -> RowIndex:
    for split in load(uri).splits.values():
        if content_of(split) == content:
            return load_index(uri, split)
    raise DatasetError(f"{uri}: has been replaced by another data set while it was read; start again")


def read_images(index: RowIndex, rows: Rows, corrupt: set[int] | None = None) -> list[memoryview]:
    """Returns the stored bytes of rows, in the order of `rows`. corrupt, errors: see `read_parts`."""
    return [image for _, images in read_parts(index, rows, corrupt) for image in images]


def read_parts(
    index: RowIndex, rows: Rows, corrupt: set[int] | None = None
) -> Iterator[tuple[slice, list[memoryview]]]:
    """Yields (positions in `rows`, stored bytes of these rows), part after part, in the order of `rows`.

    Local rows come as one part. Remote rows come in parts of REMOTE_PART_ROWS, and all requests are sent at once, so a
    caller that decodes one part doesn't wait for the next. Raises DatasetError, with the place of the row, for bytes
    that have changed since ingest; if `corrupt` is a set, adds the row's position in `rows` to it instead.
    """
    if files.is_local(index.paths[0]):
        images = _read_local(index, rows)
        _check_crc32(index, rows, 0, images, corrupt)
        yield slice(0, len(rows)), images
        return
    requests, request_of = _requests(index, rows)
    arrived = _on_disk(index, requests)
    # In the order in which they are needed.
    needed = [number for number in dict.fromkeys(request_of.tolist()) if number not in arrived]
    pool = _remote_readers(os.getpid())
    reads = read_ahead(pool, lambda number: _read_request(index, requests[number]), needed, in_order=True)
    for first in range(0, len(rows), REMOTE_PART_ROWS):
        part = slice(first, min(first + REMOTE_PART_ROWS, len(rows)))
        images = []
        for row, number in zip(rows[part].tolist(), request_of[part].tolist(), strict=True):
            while number not in arrived:
                arrived.update([next(reads)])
            start = int(index.offset[row]) - requests[number].offset
            images.append(arrived[number][start : start + int(index.length[row])])
        _check_crc32(index, rows, first, images, corrupt)
        yield part, images


def coalesce_rows(index: RowIndex, rows: Rows) -> tuple[list[Request], Rows]:
    """Returns the requests that fetch rows, and for each row the number of its request: int64 [N]."""
    ranges = coalesce(index.shard[rows], index.offset[rows], index.length[rows], REMOTE_GAP_BYTES, REMOTE_RANGE_BYTES)
    request_of = np.empty(len(rows), dtype=np.int64)
    for number, each in enumerate(ranges):
        request_of[list(each.items)] = number
    return [Request(each.object, each.offset, each.length, int(rows[each.items[0]])) for each in ranges], request_of


def requests_for(index: RowIndex, rows: Rows, whole: Collection[int]) -> tuple[list[Request], Rows]:
    """Returns what `coalesce_rows` does, but one request for all rows of each row group in `whole`."""
    groups = index.groups_of(rows)
    chosen = (group for group in dict.fromkeys(groups.tolist()) if group in whole)
    numbers = {group: number for number, group in enumerate(chosen)}
    request_of = np.array([numbers.get(group, -1) for group in groups.tolist()], dtype=np.int64)
    others, others_of = coalesce_rows(index, rows[request_of < 0])
    request_of[request_of < 0] = len(numbers) + others_of
    return [*map(index.whole_group, numbers), *others], request_of


def _requests(index: RowIndex, rows: Rows) -> tuple[list[Request], Rows]:
    if index.cache is None:
        return coalesce_rows(index, rows)
    groups = np.unique(index.groups_of(rows))
    lengths = dict(zip(groups.tolist(), index.group_bytes(groups).tolist(), strict=True))
    return requests_for(index, rows, index.cache.whole(lengths))


def _on_disk(index: RowIndex, requests: list[Request]) -> dict[int, memoryview]:
    """Returns {number of the request: its bytes} of the row groups that are in the cache."""
    found: dict[int, memoryview] = {}
    for number, each in enumerate(requests):
        if each.group is None or index.cache is None:
            break  # whole row groups come first
        if (data := index.cache.mapped(each.group, each.length)) is not None:
            found[number] = data
    return found


def _check_crc32(index: RowIndex, rows: Rows, first: int, images: list[memoryview], corrupt: set[int] | None) -> None:
    """Checks the images of `rows` from position `first` on. Raises DatasetError, or adds positions to `corrupt`.

    An image whose bytes are damaged in the cache alone is replaced in `images`.
    """
    crcs = index.crc32[rows[first : first + len(images)]].tolist()
    for position, (image, expected) in enumerate(zip(images, crcs, strict=True), first):
        if zlib.crc32(image) == expected:
            continue
        row = int(rows[position])
        if index.cache is not None and (stored := _without_cache(index, row, index.cache)) is not None:
            images[position - first] = stored
        elif corrupt is None:
            instead = "--on-corrupt quarantine goes on without such images"
            raise DatasetError(f"{index.place(row)}: {_CHANGED}; {_REMEDY}; {instead}")
        else:
            corrupt.add(position)


def _without_cache(index: RowIndex, row: int, cache: RowGroupCache) -> memoryview | None:
    """Returns the image of a row as it is stored, and removes its row group from the cache; None if it is damaged."""
    shard, offset, length = int(index.shard[row]), int(index.offset[row]), int(index.length[row])
    image = _read_request(index, Request(shard, offset, length, row))
    if zlib.crc32(image) != index.crc32[row]:
        return None
    cache.remove(index.groups_of(np.array([row])).tolist())
    return image


def _read_local(index: RowIndex, rows: Rows) -> list[memoryview]:
    columns = (rows, index.shard[rows], index.offset[rows], index.length[rows])
    places = list(zip(*(column.tolist() for column in columns), strict=True))
    mapped: dict[int, files.MappedFile] = {}
    images = []
    row = -1  # the one at work, for the message
    try:
        # The system learns of all rows first, and reads them ahead.
        for row, shard, offset, length in places:  # noqa: B007
            if shard not in mapped:
                mapped[shard] = files.map_file(index.paths[shard])
            mapped[shard].prefetch(offset, length)
        for row, shard, offset, length in places:  # noqa: B007
            images.append(mapped[shard].read(offset, length))
    except OSError as error:
        raise DatasetError(f"{index.place(row)}: can't be read ({error}); {_REMEDY}") from error
    return images


def _read_request(index: RowIndex, request: Request) -> memoryview:
    try:
        place = (index.paths[request.shard], request.offset, request.length)
        if request.group is not None and index.cache is not None:
            return index.cache.read(request.group, *place)
        return files.read_range(*place)
    except OSError as error:
        raise DatasetError(f"{index.place(request.row)}: can't be read ({error}); {_REMEDY}") from error


@lru_cache(maxsize=1)
def _remote_readers(process: int) -> ThreadPoolExecutor:
    """Returns the threads of this process. process: its id, so that a forked child doesn't get its parent's threads."""
    return ThreadPoolExecutor(REMOTE_READERS, thread_name_prefix="read")
