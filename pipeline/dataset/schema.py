"""The columns of the Parquet files of a data set: shards, and the provenance beside each shard.

A file that has other columns, or is no Parquet file, is refused in one line.
"""

import json
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import DatasetError

THUMBNAIL_PX = 16

# One row for each row of the shard, in the same order: its source, its place in the shard, and facts of its pixels.
PROVENANCE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.int32()),
        ("offset", pa.int64()),  # of the image's first byte in the shard
        ("crc32", pa.uint32()),  # of the stored image
        ("source_sha256", pa.binary(32)),
        ("repair", pa.dictionary(pa.int32(), pa.string())),  # "" if the image is stored as it came
        ("pixel_sha256", pa.binary(32)),  # this column and those below are null if the image wasn't decoded
        ("brightness", pa.float32()),  # mean of all values, 0 to 255
        ("perceptual_hash", pa.uint64()),
        ("thumbnail", pa.binary(THUMBNAIL_PX * THUMBNAIL_PX)),  # grey values
    ]
)


def shard_schema(classes: tuple[str, ...]) -> pa.Schema:
    """Returns the schema of a shard, with the metadata that tells Hugging Face `datasets` of images and classes."""
    features = {
        "key": {"dtype": "string", "_type": "Value"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "image": {"_type": "Image"},
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
    }
    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.int32()),
            ("image", pa.binary()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def parse_table(data: bytes, uri: str, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns columns (None: all) of the content of a Parquet file.

    uri, remedy: of the file, for the message. Raises DatasetError if it is no Parquet file, or lacks a column.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))
        names = table.column_names  # of a damaged file they may be no text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{uri}: damaged: no Parquet file that can be read ({_line(error)}); {remedy}") from error
    if missing := [name for name in columns or () if name not in names]:
        raise DatasetError(f"{uri}: has no column {missing[0]!r}: written by another release, or damaged; {remedy}")
    return table


def as_schema(table: pa.Table, schema: pa.Schema, uri: str, remedy: str, may_be_null: Collection[str] = ()) -> pa.Table:
    """Returns a table as one of `schema`, whole and valid: text is UTF-8, and no value is null but in `may_be_null`.

    uri, remedy: of its file, for the message. Raises DatasetError if it can't be.
    """
    if table.column_names != schema.names:
        known = f"{', '.join(table.column_names)} instead of {', '.join(schema.names)}"
        raise DatasetError(f"{uri}: written by another release, or damaged: its columns are {known}; {remedy}")
    try:
        table.validate(full=True)
        table = table.cast(schema)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"{uri}: written by another release, or damaged ({_line(error)}); {remedy}") from error
    for name in schema.names:
        if name not in may_be_null and table[name].null_count:
            raise DatasetError(f"{uri}: damaged: {table[name].null_count:,} rows lack their {name!r}; {remedy}")
    return table


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
