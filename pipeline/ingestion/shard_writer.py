"""Writes one shard, a Parquet file, and the provenance of its rows: the same bytes for the same rows.

Images lie one after another, uncompressed, so that readers may take any row by its offset alone.
"""

import hashlib
import mmap
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.image_codec import Buffer
from pipeline.dataset.records import Rows
from pipeline.dataset.schema import PROVENANCE_SCHEMA, shard_schema
from pipeline.ingestion.image_check import Stored
from pipeline.storage import files

_IMAGE_COLUMN = 2
_PAGE_HEADER_BYTES = 4096  # more than the header of a page and its levels take
_OVERHEAD_BYTES = 256  # most that Parquet adds to a row, its share of the row group's metadata included


@dataclass
class Row:
    """One row to be written."""

    key: str
    label: int
    image: Stored
    place: int | None = None  # where the image begins in the shard's `ImageMemory`, None if it isn't there


@dataclass(frozen=True)
class Written:
    """A shard that was written."""

    bytes: int  # of the file
    sha256: str  # hex
    row_group_rows: tuple[int, ...]
    row_group_offsets: tuple[int, ...]
    row_group_bytes: tuple[int, ...]


_mappings = threading.local()


def _mapping(name: str, num_bytes: int) -> mmap.mmap:
    """Returns anonymous memory of at least so many bytes, the same for every shard of this thread."""
    # Fresh memory costs time: the system zeroes each of its pages on first use.
    kept: mmap.mmap | None = getattr(_mappings, name, None)
    if kept is None or len(kept) < num_bytes:
        kept = mmap.mmap(-1, max(1, -(-num_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE)
        setattr(_mappings, name, kept)
    return kept


class ImageMemory:
    """Memory for the images of one shard that are stored as they came, in the order of the shard.

    Images arrive in any order and are copied to their places, so the file is written without another copy. The memory
    is that of the thread's next shard, too: nothing of it may be used after that one has begun. lengths: most bytes of
    each image.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *lengths]).tolist()
        self.view = memoryview(_mapping("images", self._starts[-1]))

    def keep(self, position: int, data: Buffer) -> int:
        """Copies the image of a row to its place, and returns where that begins."""
        start: int = self._starts[position]
        self.view[start : start + len(data)] = data
        return start


def write_shard(
    uri: str, rows: Sequence[Row], classes: tuple[str, ...], row_group_rows: int, memory: ImageMemory | None = None
) -> tuple[Written, Rows]:
    """Writes rows as one Parquet file. Returns (what was written, first byte of each image in the file: int64 [N]).

    row_group_rows: rows of each row group but the last. memory: holds the images of the rows that have a `place`.
    """
    schema = shard_schema(classes)
    num_bytes = sum(len(row.image.data) + 2 * len(row.key.encode()) for row in rows)
    most = num_bytes + _OVERHEAD_BYTES * len(rows) + 4 * len(schema.serialize()) + (1 << 20)
    file = _mapping("file", most)
    with pa.FixedSizeBufferWriter(pa.py_buffer(file)) as sink:
        writer = pq.ParquetWriter(
            sink,
            schema,
            compression="none",  # JPEG and PNG are compressed already
            use_dictionary=False,
            write_statistics=["key", "label", "height", "width"],  # those of `image` would hold whole images
            # One page for each column of a row group: its images lie one after another, each behind its length.
            data_page_size=1 << 30,
            write_batch_size=row_group_rows,
        )
        with writer:
            for start in range(0, len(rows), row_group_rows):
                table = _table(rows[start : start + row_group_rows], schema, memory)
                writer.write_table(table, row_group_size=row_group_rows)
        groups = _row_groups(writer.writer.metadata)
        offsets = _image_offsets(file, writer.writer.metadata, rows, row_group_rows)
        size = sink.tell()
    with memoryview(file) as view, view[:size] as data:
        digest = hashlib.sha256(data).hexdigest()
    files.write_mapped(uri, file, size)
    return Written(size, digest, *groups), offsets


def _image_offsets(file: mmap.mmap, metadata: Any, rows: Sequence[Row], row_group_rows: int) -> Rows:
    """Returns int64 [N]: the first byte of each image in the file. Fails if pyarrow lays pages out in another way."""
    # Parquet's metadata has the offsets of pages only; in a page each image follows its length (4 bytes).
    offsets = [np.empty(0, dtype=np.int64)]
    for number in range(metadata.num_row_groups):
        group = rows[number * row_group_rows : (number + 1) * row_group_rows]
        lengths = np.array([len(row.image.data) for row in group], dtype=np.int64)
        page = metadata.row_group(number).column(_IMAGE_COLUMN).data_page_offset
        first = int(lengths[0]).to_bytes(4, "little") + bytes(group[0].image.data[:64])
        found = file.find(first, page, page + _PAGE_HEADER_BYTES + len(first))
        starts = found + 4 + np.cumsum(lengths + 4) - (lengths + 4)
        last = int(starts[-1])
        if found < 0 or file[last - 4 : last] != int(lengths[-1]).to_bytes(4, "little"):
            raise AssertionError("this pyarrow lays out pages of binary values in an unknown way")
        offsets.append(starts)
    return np.concatenate(offsets)


def _table(rows: Sequence[Row], schema: pa.Schema, memory: ImageMemory | None) -> pa.Table:
    images = [row.image.data for row in rows]
    ends = np.cumsum([0, *map(len, images)], dtype=np.int32)
    first = rows[0].place
    if memory is not None and first is not None and [row.place for row in rows] == (first + ends[:-1]).tolist():
        values: Buffer = memory.view[first : first + int(ends[-1])]  # one after another already: no copy
    else:
        values = b"".join(images)
    columns = [
        pa.array([row.key for row in rows], pa.string()),
        pa.array([row.label for row in rows], pa.int32()),
        pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(values)]),
        pa.array([row.image.height for row in rows], pa.int32()),
        pa.array([row.image.width for row in rows], pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _row_groups(metadata: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns (rows, first byte, bytes) of each row group."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [[group.column(index) for index in range(group.num_columns)] for group in groups]
    return (
        tuple(group.num_rows for group in groups),
        tuple(min(column.data_page_offset for column in each) for each in columns),
        tuple(sum(column.total_compressed_size for column in each) for each in columns),
    )


def provenance_table(rows: Sequence[Row], offsets: Rows) -> pa.Table:
    """Returns a table of PROVENANCE_SCHEMA. offsets: int64 [N], first byte of each image in the shard."""
    facts = [row.image.facts for row in rows]
    columns: list[list[Any]] = [
        [row.key for row in rows],
        [row.label for row in rows],
        [row.image.height for row in rows],
        [row.image.width for row in rows],
        [len(row.image.data) for row in rows],
        offsets.tolist(),
        [zlib.crc32(row.image.data) for row in rows],
        [bytes.fromhex(row.image.source_sha256) for row in rows],
        [row.image.repair for row in rows],
        [f and bytes.fromhex(f.sha256) for f in facts],
        [f and brightness(f.histogram) for f in facts],
        [f and f.perceptual_hash for f in facts],
        [f and f.thumbnail for f in facts],
    ]
    arrays = []
    for column, field in zip(columns, PROVENANCE_SCHEMA, strict=True):
        dictionary = pa.types.is_dictionary(field.type)
        arrays.append(pa.array(column, pa.string()).dictionary_encode() if dictionary else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=PROVENANCE_SCHEMA)


def brightness(histogram: npt.NDArray[np.int64]) -> float:
    """Returns the mean of all values of an image, 0 to 255. histogram: int64 [768], see `PixelFacts`."""
    counts = histogram.reshape(3, 256).sum(axis=0)
    return float(counts @ np.arange(256) / counts.sum())
