"""How a version sees the stored rows of its shards: some are left out, some have another class.

The edit files of a version hold the edits of all shards that it refers to, those of earlier versions included, so that
no reader follows a chain.
"""

import hashlib
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.dataset.records import EditFile, Rows, Shard
from pipeline.dataset.schema import as_schema, parse_table
from pipeline.storage import files

_OTHER_RELEASE = "read the data set with the release that has written it"
DELETIONS_NAME, CORRECTIONS_NAME = "deletions.parquet", "corrections.parquet"
_PLACE = [("shard", pa.dictionary(pa.int32(), pa.string())), ("row", pa.int32()), ("key", pa.string())]
# Both sorted by shard and row. shard: BASE/PATH, or PATH of the version's own; row: index in the shard as it is stored.
DELETIONS_SCHEMA = pa.schema([*_PLACE, ("reason", pa.string())])
CORRECTIONS_SCHEMA = pa.schema([*_PLACE, ("class", pa.string()), ("reason", pa.string())])


def edit_file(path: str, data: bytes) -> EditFile:
    """Returns the reference to an edit file with this content. path: below the folder of the manifest."""
    return EditFile(path, hashlib.sha256(data).hexdigest())


def read_edits(uri: str, file: EditFile | None, schema: pa.Schema) -> pa.Table:
    """Returns the edit file of the data set at `uri`, checked; an empty table of `schema` if there is none.

    Raises DatasetError if the file is missing, isn't the one that the manifest names, or has other columns.
    """
    if file is None:
        return schema.empty_table()
    place = files.resolve(uri, file.path)
    try:
        data = files.read_bytes(place)
    except FileNotFoundError as error:
        raise DatasetError(f"{place}: is missing; restore it from a copy of the data set") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DatasetError(f"{place}: edited or damaged (SHA-256); restore it from a copy of the data set")
    return as_schema(parse_table(data, place, _OTHER_RELEASE), schema, place, _OTHER_RELEASE)


@lru_cache(maxsize=8)
def _deleted(uri: str, file: EditFile) -> dict[str, Rows]:
    """Returns {shard: the stored rows that are left out, ascending}."""
    return rows_by_shard(read_edits(uri, file, DELETIONS_SCHEMA))


@lru_cache(maxsize=8)
def _corrected(uri: str, file: EditFile, classes: tuple[str, ...]) -> dict[str, tuple[Rows, Rows]]:
    """Returns {shard: (the stored rows that have another class, ascending; their labels)}."""
    table = read_edits(uri, file, CORRECTIONS_SCHEMA)
    numbers = pa.compute.index_in(table["class"], value_set=pa.array(classes, pa.string()))
    if numbers.null_count:
        unknown = table["class"].filter(pa.compute.is_null(numbers))[0].as_py()
        raise DatasetError(f"{files.resolve(uri, file.path)}: class {unknown!r} is none of the data set's; restore it")
    return _by_shard(table, numbers.to_numpy().astype(np.int64))


def rows_by_shard(table: pa.Table) -> dict[str, Rows]:
    """Returns {shard: its rows in a table of edits, ascending}."""
    return {name: rows for name, (rows, _) in _by_shard(table).items()}


def _by_shard(table: pa.Table, values: Rows | None = None) -> dict[str, tuple[Rows, Rows]]:
    """Returns {shard: (rows, ascending; their values)}. values: int64 [N], None for the rows themselves."""
    column = table["shard"].combine_chunks()
    names, codes = column.dictionary.to_pylist(), column.indices.to_numpy()
    rows = table["row"].to_numpy().astype(np.int64)
    values = rows if values is None else values
    order = np.lexsort((rows, codes))
    found = {}
    for part in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(part):
            found[names[codes[part[0]]]] = (rows[part], values[part])
    return found


def rows_per_group(shard: Shard, rows: Rows) -> tuple[int, ...]:
    """Returns how many of some stored rows of a shard lie in each of its row groups."""
    ends = np.cumsum(shard.row_group_rows)
    return tuple(np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(ends)).tolist())


def live_rows(uri: str, shard: Shard, start: int = 0, stop: int | None = None) -> Rows:
    """Returns int64 [N]: the stored rows of a shard from `start` to `stop` that aren't left out, ascending.

    uri: of the data set. Raises DatasetError if the manifest counts other deletions than the edit file holds.
    """
    stop = shard.rows if stop is None else stop
    rows = np.arange(start, stop)
    if not shard.deleted or shard.edits is None or shard.edits.deletions is None:
        return rows
    deleted = _deleted(uri, shard.edits.deletions).get(shard.edits.shard, np.empty(0, np.int64))
    if rows_per_group(shard, deleted) != shard.deleted:
        raise DatasetError(f"{shard.path}: the manifest counts other deleted rows than {shard.edits.deletions.path}")
    first, last = np.searchsorted(deleted, [start, stop])
    return np.delete(rows, deleted[first:last] - start)


def as_edited(uri: str, shard: Shard, table: pa.Table, rows: Rows) -> pa.Table:
    """Returns stored rows of a shard as the data set has them: labels in its classes, keys with their source's name.

    table: the stored rows `rows`, with any columns. Raises DatasetError if a row is of a class that the version lacks.
    """
    if shard.key_prefix and "key" in table.column_names:
        keys = pa.compute.binary_join_element_wise(shard.key_prefix, table["key"], "")
        table = table.set_column(table.column_names.index("key"), "key", keys)
    if shard.edits is None or "label" not in table.column_names:
        return table
    stored = table["label"].to_numpy().astype(np.int64)
    labels = stored if shard.edits.labels is None else np.array(shard.edits.labels, dtype=np.int64)[stored]
    if shard.edits.corrections is not None:
        corrected = _corrected(uri, shard.edits.corrections, shard.edits.classes).get(shard.edits.shard)
        if corrected is not None:
            at = np.searchsorted(corrected[0], rows).clip(max=len(corrected[0]) - 1)
            labels = np.where(corrected[0][at] == rows, corrected[1][at], labels)
    if (labels < 0).any():
        bad = int(rows[int(np.flatnonzero(labels < 0)[0])])
        raise DatasetError(f"{shard.path}: row {bad} is of a class that the version lacks; restore its edit files")
    at = table.column_names.index("label")
    return table.set_column(at, table.schema.field("label"), pa.array(labels, table.schema.field("label").type))
