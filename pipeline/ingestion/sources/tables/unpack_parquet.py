"""Reads Parquet files of images: their schema and label columns, and the images, which are copied out of them once.

The bytes of an image lie compressed or split in pages, so no range of the Parquet file is the image. They are written
one after another to a file of the spool folder, a batch of rows at a time.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.archives.ranged import Place, RangedFile
from pipeline.storage import files

_BATCH_ROWS = 16
_BUFFER_BYTES = 1 << 20
_IMAGE_NAMES = ["image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content", "data"]


@dataclass(frozen=True)
class Unpacked:
    """The images of one Parquet file, in its order: columns of equal length."""

    offsets: list[int]  # in the file that they were written to
    lengths: list[int]  # 0 where a row has no image
    names: list[str]  # base name of the file that an image was; "" where it isn't known


@contextmanager
def open_parquet(place: Place) -> Iterator[Any]:
    """Yields a ParquetFile. Raises SourceError, also for what is read in the block, if the file is damaged."""
    import pyarrow.parquet as pq

    try:
        with pa.PythonFile(RangedFile(place), "r") as stream:
            # Without these, a whole row group would be read before its first row.
            yield pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise SourceError(
            f"{place.name}: the Parquet file is truncated or damaged ({reason}); download it again"
        ) from error


def image_columns(schema: pa.Schema) -> list[str]:
    """Returns the columns that hold images: those that Hugging Face's metadata says, else by type and then by name."""
    declared = [name for name, feature in features(schema).items() if feature.get("_type") == "Image"]
    typed = [each.name for each in schema if _is_struct(each.type) or _is_binary(each.type)]
    found = [name for name in declared if name in typed] or typed
    named = [name for name in found if re.sub("[^a-z]", "", name.lower()) in _IMAGE_NAMES]
    return found if len(found) == 1 else named or found


def scalar_columns(schema: pa.Schema) -> list[str]:
    """Returns the columns of numbers and words."""
    return [
        each.name
        for each in schema
        if pa.types.is_integer(each.type)
        or pa.types.is_floating(each.type)
        or pa.types.is_boolean(each.type)
        or pa.types.is_string(each.type)
        or pa.types.is_large_string(each.type)
        or pa.types.is_dictionary(each.type)
    ]


def features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Returns {column: feature} of the metadata that the library `datasets` writes; {} if there is none."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: each for name, each in info.items() if isinstance(each, dict)} if isinstance(info, dict) else {}


def unpack(place: Place, column: str, target: str, report: Callable[[int], None]) -> Unpacked:
    """Writes the images of a column to the URI `target`. report: called with the bytes written so far.

    Raises SourceError if the file is damaged.
    """
    found = Unpacked([], [], [])
    position = 0
    with open_parquet(place) as parquet, files.write_pieces(target) as out:
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=[column], use_threads=False):
            for value in batch.column(0).to_pylist():
                data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
                out.write(data or b"")
                found.offsets.append(position)
                found.lengths.append(len(data or b""))
                found.names.append(str(name or "").replace("\\", "/").rpartition("/")[2])
                position += len(data or b"")
            report(position)
    return found


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and any(
        each.name == "bytes" and _is_binary(each.type) for each in kind.fields
    )
