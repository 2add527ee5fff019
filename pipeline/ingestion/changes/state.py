"""The state of a source and of its pixels when it was ingested, `_state/`: a later ingest does what is new alone.

The manifest's digest doesn't cover it, because copies of a source have other times. Without it nothing is lost: every
file is read and its SHA-256 compared, every image decoded, and all near duplicates are searched again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DatasetError
from pipeline.dataset.parquet import parquet_bytes, read_table
from pipeline.dataset.schema import as_schema
from pipeline.ingestion.changes.stamps import STAMPS_SCHEMA
from pipeline.ingestion.quality.duplicates import NEAR_SCHEMA
from pipeline.ingestion.sources import Index
from pipeline.storage import files

STATE_FOLDER = "_state"
SOURCES_NAME = f"{STATE_FOLDER}/sources.parquet"
_READ_AGAIN = "delete it: then every file of the source is read once more, to be compared"
_DECODE_AGAIN = "delete it: then every image is decoded once more, and all near duplicates are searched again"
NEAR_NAME, HISTOGRAM_NAME = f"{STATE_FOLDER}/near-duplicates.parquet", f"{STATE_FOLDER}/histogram.parquet"

# A row for each image of the source that could be used, sorted by split and key.
STATE_SCHEMA = pa.schema(
    [
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("key", pa.string()),
        ("class", pa.dictionary(pa.int32(), pa.string())),  # in the source
        ("object", pa.string()),  # relative to the source, "" for an archive itself; null if it was unpacked
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("modified_ns", pa.int64()),  # null if the time says nothing
        ("etag", pa.string()),  # "" on disks
    ]
)

_COUNTS_SCHEMA = pa.schema([("count", pa.int64())])


def state_of(index: Index, quarantined: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """Returns a table of STATE_SCHEMA for the rows of an index.

    quarantined: for each split the keys of rows that couldn't be stored; they are left out, and so tried again.
    """
    parts = [_of_split(index, split, table) for split, table in sorted(index.splits.items())]
    for at, split in enumerate(sorted(index.splits)):
        if quarantined and len(keys := quarantined.get(split, ())):
            parts[at] = parts[at].filter(pc.invert(pc.is_in(parts[at]["key"], value_set=keys)))
    return pa.concat_tables(parts).unify_dictionaries()


def _of_split(index: Index, split: str, table: pa.Table) -> pa.Table:
    stamps = STAMPS_SCHEMA.empty_table() if index.stamps is None else index.stamps
    objects = table["object"].combine_chunks()
    # Each object once, then by its number: an archive holds many rows.
    at = pc.index_in(objects.dictionary, value_set=stamps["object"]).take(objects.indices)
    stamp = {name: stamps[name].combine_chunks().take(at) for name in ("name", "modified_ns", "etag")}
    columns = [
        _repeated(split, table.num_rows),
        table["key"],
        pa.DictionaryArray.from_arrays(table["label"].combine_chunks(), pa.array(index.classes, pa.string())),
        stamp["name"],
        table["offset"],
        table["length"],
        stamp["modified_ns"],
        stamp["etag"].fill_null(""),
    ]
    return pa.Table.from_arrays(columns, schema=STATE_SCHEMA)


def _repeated(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def same_state(now: pa.Table, before: pa.Table) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: the rows whose bytes can't have changed, because object, place, length and stamp are the same.

    now, before: tables of STATE_SCHEMA with the same images in the same order. Where both have an ETag it decides, else
    the time of change. Rows without either, and unpacked ones, are never the same.
    """
    same = np.ones(now.num_rows, dtype=bool)
    for name in ("object", "offset", "length", "etag"):
        same &= _equal(now[name], before[name])
    return same & (_equal(now["modified_ns"], before["modified_ns"]) | pc.not_equal(now["etag"], "").to_numpy())


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.equal(one, other).fill_null(False).to_numpy(), dtype=bool)


def write_state(out: str, state: pa.Table) -> None:
    """Writes the state of the source beside the manifest of a data set."""
    files.write_bytes(files.join(out, SOURCES_NAME), parquet_bytes(state))


def read_state(uri: str) -> pa.Table:
    """Returns the state of the source of a data set; an empty table if the data set is older than such files.

    Raises DatasetError if the file is damaged.
    """
    place = files.join(uri, SOURCES_NAME)
    try:
        table = read_table(place, remedy=_READ_AGAIN)
    except FileNotFoundError:
        return STATE_SCHEMA.empty_table()
    table = as_schema(table, STATE_SCHEMA, place, _READ_AGAIN, ("class", "object", "modified_ns", "etag"))
    etag = table["etag"].fill_null("")  # an unknown one says as little as none
    return table.set_column(STATE_SCHEMA.get_field_index("etag"), STATE_SCHEMA.field("etag"), etag)


@dataclass(frozen=True)
class PixelState:
    """What a data set's pixels were found to be, so that a version adds what is new and takes away what is gone."""

    near: pa.Table  # of `quality.duplicates.NEAR_SCHEMA`: all near duplicates
    histogram: npt.NDArray[np.int64]  # [768]: counts of the values of R, G and B over all rows


def write_pixels(out: str, state: PixelState) -> None:
    """Writes the state of the pixels beside the manifest of a data set."""
    files.write_bytes(files.join(out, NEAR_NAME), parquet_bytes(state.near))
    counts = pa.Table.from_arrays([pa.array(state.histogram, pa.int64())], schema=_COUNTS_SCHEMA)
    files.write_bytes(files.join(out, HISTOGRAM_NAME), parquet_bytes(counts))


def read_pixels(uri: str) -> PixelState | None:
    """Returns the state of the pixels of a data set; None if the data set is older than such files.

    Raises DatasetError if one of them is damaged.
    """
    places = [files.join(uri, name) for name in (NEAR_NAME, HISTOGRAM_NAME)]
    try:
        near, counts = (read_table(place, remedy=_DECODE_AGAIN) for place in places)
    except FileNotFoundError:
        return None
    near = as_schema(near, NEAR_SCHEMA, places[0], _DECODE_AGAIN)
    histogram = as_schema(counts, _COUNTS_SCHEMA, places[1], _DECODE_AGAIN)["count"].to_numpy()
    num_pixels = histogram.reshape(3, -1).sum(axis=1) if len(histogram) == 768 else None
    if num_pixels is None or histogram.min() < 0 or len(np.unique(num_pixels)) > 1:
        raise DatasetError(f"{places[1]}: damaged: no counts of the 256 values of R, G and B; {_DECODE_AGAIN}")
    return PixelState(near, histogram)
