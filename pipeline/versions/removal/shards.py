"""Writes shards once more without the rows that are removed, under new names, and keeps what a search must look for."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dataset.image_codec import decode
from pipeline.dataset.manifest import Shard
from pipeline.dataset.parquet import stored_provenance
from pipeline.dataset.records import Rows
from pipeline.reporting.charts import thumbnail
from pipeline.storage import files
from pipeline.versions.family import Member
from pipeline.versions.removal.traces import pixel_ranges
from pipeline.versions.stored_rows import write_stored

_REWRITTEN = re.compile(r"-r(\d+)$")


@dataclass(frozen=True)
class Rewritten:
    """A shard without the rows that are removed."""

    shard: Shard | None
    """The new one; None if no row is left."""

    new_rows: Rows
    """int64 [rows of the old one]: row in the new shard, -1 for one that is removed."""

    images: tuple[bytes, ...]
    """Stored bytes of the removed images, and bytes of their source files where they are others and known."""

    derived: tuple[bytes, ...]
    """What was made of the removed images: thumbnails, and pictures on pages as text."""


def rewrite(member: Member, shard: Shard, gone: Rows) -> Rewritten:
    """Writes the shard of a version without the stored rows `gone`, beside the old one. Raises DatasetError."""
    table = stored_provenance(member.uri, shard)
    data = memoryview(files.read_bytes(files.join(member.uri, shard.path)))
    images = [
        data[start : start + length]
        for start, length in zip(table["offset"].to_pylist(), table["bytes"].to_pylist(), strict=True)
    ]
    kept = np.delete(np.arange(shard.rows), gone)
    new_rows = np.full(shard.rows, -1, dtype=np.int64)
    new_rows[kept] = np.arange(len(kept))
    lost = [(bytes(images[row]), table.slice(row, 1)) for row in gone.tolist()]
    removed = tuple(each for image, row in lost for each in (image, *_source_bytes(image, row)))
    derived = tuple(each for image, row in lost for each in _derived(image, row))
    if not len(kept):
        return Rewritten(None, new_rows, removed, derived)
    written = write_stored(
        member.uri,
        (_next_name(shard.path), _next_name(shard.provenance_path)),
        table.take(pa.array(kept)),
        [images[row] for row in kept],
        member.manifest.classes,
        max(shard.row_group_rows),
    )
    return Rewritten(written, new_rows, removed, derived)


def _source_bytes(image: bytes, row: pa.Table) -> Sequence[bytes]:
    """Returns the source file of an image where it isn't the image itself: of CIFAR, the values of R, G and B.

    Other files were converted: none of their bytes has been stored, and they can't be had from the image.
    """
    if row["repair"][0].as_py() or hashlib.sha256(image).digest() == row["source_sha256"][0].as_py():
        return []
    return [np.ascontiguousarray(decode(image).transpose(2, 0, 1)).tobytes()]


def _derived(image: bytes, row: pa.Table) -> Sequence[bytes]:
    """Returns the thumbnail, if there is one, and the text that shows the image on a page, without its common start."""
    text = thumbnail(image).partition(",")[2]
    start = pixel_ranges(base64.b64decode(text))[0][0]
    grey = row["thumbnail"][0].as_py()
    return [*([grey] if grey else []), text[-(-start // 3) * 4 :].encode()]


def _next_name(path: str) -> str:
    """Returns the name of a file that is written once more: `00000-of-00003.parquet`, `...-r1.parquet`, `...-r2`."""
    stem, dot, suffix = path.rpartition(".")
    found = _REWRITTEN.search(stem)
    number = int(found[1]) if found else 0
    return f"{_REWRITTEN.sub('', stem)}-r{number + 1}{dot}{suffix}"
