"""Stored rows, written once more: a shard from rows of other shards, without decoding an image."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.dataset.image_codec import Buffer
from pipeline.dataset.manifest import Shard
from pipeline.dataset.parquet import parquet_bytes
from pipeline.dataset.records import Rows
from pipeline.dataset.schema import PROVENANCE_SCHEMA
from pipeline.ingestion.image_check import Stored
from pipeline.ingestion.shard_writer import Row, write_shard
from pipeline.storage import files


def write_stored(
    out: str,
    paths: tuple[str, str],
    rows: pa.Table,
    images: Sequence[Buffer],
    classes: tuple[str, ...],
    group_rows: int,
) -> Shard:
    """Writes a shard and its provenance: the same bytes that an ingest of the same source files writes.

    paths: of both, below `out`. rows: a table of PROVENANCE_SCHEMA in the order of the shard, with labels in `classes`;
    its offsets are those of the new shard afterwards. images: the stored bytes of each. group_rows: rows of each row
    group but the last. Raises DatasetError if an image isn't the one that its provenance describes (CRC-32).
    """
    columns = [rows[name].to_pylist() for name in ("key", "label", "height", "width", "crc32")]
    for key, crc32, image in zip(columns[0], columns[4], images, strict=True):
        if zlib.crc32(image) != crc32:
            raise DatasetError(
                f"{key}: not the bytes that were ingested (CRC-32); jobs/verify.py lists all that is damaged: restore "
                "it from a copy"
            )
    stored = [
        Row(key, label, Stored(image, height, width, "", "", None))
        for key, label, height, width, image in zip(*columns[:4], images, strict=True)
    ]
    written, offsets = write_shard(files.join(out, paths[0]), stored, classes, group_rows)
    provenance = parquet_bytes(_with_offsets(rows, offsets))
    files.write_bytes(files.join(out, paths[1]), provenance)
    return Shard(
        path=paths[0],
        rows=len(stored),
        **asdict(written),
        provenance_path=paths[1],
        provenance_sha256=hashlib.sha256(provenance).hexdigest(),
    )


def _with_offsets(rows: pa.Table, offsets: Rows) -> pa.Table:
    """Returns rows as the table of one shard: with its offsets, and only its own repairs in the dictionary."""
    rows = rows.set_column(rows.column_names.index("offset"), "offset", pa.array(offsets, pa.int64()))
    repairs = rows["repair"].cast(pa.string()).combine_chunks().dictionary_encode()
    rows = rows.set_column(rows.column_names.index("repair"), "repair", repairs)
    return rows.select(PROVENANCE_SCHEMA.names).cast(PROVENANCE_SCHEMA).combine_chunks()
