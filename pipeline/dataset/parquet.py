"""Reads the Parquet files of a data set: provenance, small tables, and single rows of shards."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.edits import as_edited, live_rows
from pipeline.dataset.manifest import Manifest, Shard, Split
from pipeline.dataset.records import Rows
from pipeline.dataset.schema import parse_table
from pipeline.storage import files
from pipeline.storage.parallel_reads import read_ahead

_TABLE_READERS = 16
_RESTORE = "restore it from a copy of the data set"


def parquet_bytes(table: pa.Table) -> bytes:
    """Returns a table as the content of a Parquet file."""
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue().to_pybytes()


def read_table(uri: str, columns: list[str] | None = None, remedy: str = _RESTORE) -> pa.Table:
    """Returns columns (None: all) of a Parquet file, which is read whole, by one request.

    remedy: for a file that can't be read. Raises FileNotFoundError, or DatasetError if it is damaged or lacks a column.
    """
    return parse_table(files.read_bytes(uri), uri, remedy, columns)


def read_split_provenance(uri: str, split: Split, columns: list[str]) -> pa.Table:
    """Returns columns of PROVENANCE_SCHEMA for all rows of a split, in its order; reads up to 16 files at a time."""
    return pa.concat_tables(read_shard_provenance(uri, split, columns))


def read_shard_provenance(uri: str, split: Split, columns: list[str]) -> Iterator[pa.Table]:
    """Yields columns of PROVENANCE_SCHEMA for the rows of each shard of a split; reads up to 16 files at a time."""
    with ThreadPoolExecutor(_TABLE_READERS) as pool:
        read = partial(_provenance, uri, columns)
        for _, table in read_ahead(pool, read, split.shards, in_order=True, max_pending=2 * _TABLE_READERS):
            yield table


def _provenance(uri: str, columns: list[str], shard: Shard) -> pa.Table:
    rows, table = live_rows(uri, shard), stored_provenance(uri, shard, columns)
    return as_edited(uri, shard, table if len(rows) == shard.rows else table.take(pa.array(rows)), rows)


def stored_provenance(uri: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Returns columns of PROVENANCE_SCHEMA (None: all) as they are in the file, rows that are left out included."""
    return read_table(files.resolve(uri, shard.provenance_path), columns)


def read_provenance(uri: str, manifest: Manifest, columns: list[str]) -> pa.Table:
    """Returns columns of PROVENANCE_SCHEMA for all rows, after `split` and `row`, the row's index in its split."""
    tables = []
    for name, split in manifest.splits.items():
        table = read_split_provenance(uri, split, columns)
        table = table.add_column(0, "row", pa.array(np.arange(table.num_rows)))
        tables.append(table.add_column(0, "split", pa.array([name] * table.num_rows)))
    return pa.concat_tables(tables)


def find_rows(uri: str, split: Split, keys: Sequence[str]) -> Rows:
    """Returns int64 [N]: the indices in the split of the rows with these keys, ascending."""
    if not keys:
        return np.empty(0, dtype=np.int64)
    wanted, found, first = pa.array(keys), list[Rows](), 0
    for table in read_shard_provenance(uri, split, ["key"]):
        found.append(first + np.flatnonzero(pa.compute.is_in(table["key"], value_set=wanted).to_numpy()))
        first += table.num_rows
    return np.concatenate(found)


def open_shard(uri: str) -> pq.ParquetFile:
    """Returns a shard, opened for this thread alone; the last 64 stay open."""
    # A ParquetFile that two threads read from at once crashes the process.
    return _open_shard(uri, threading.get_ident())


@lru_cache(maxsize=64)
def _open_shard(uri: str, thread: int) -> pq.ParquetFile:
    if files.is_local(uri):
        return pq.ParquetFile(uri, memory_map=True)
    filesystem, path = files.open_filesystem(uri)
    return pq.ParquetFile(filesystem.open_input_file(path))


def read_rows(uri: str, split: Split, rows: Rows, columns: tuple[str, ...] = ("key", "label", "image")) -> pa.Table:
    """Returns rows of a split, by index, in the order of `rows`. Reads only the row groups that hold them."""
    group_rows = split.row_group_rows
    ends = np.cumsum(group_rows)
    groups = np.searchsorted(ends, rows, side="right")
    places = split.row_group_places
    tables, positions = [], np.empty(len(rows), dtype=np.int64)
    taken = 0
    for group in np.unique(groups):
        shard, index = places[group]
        members = np.flatnonzero(groups == group)
        within = rows[members] - (ends[group] - group_rows[group])
        first = sum(shard.row_group_rows[:index])
        stored = live_rows(uri, shard, first, first + shard.row_group_rows[index])[within]
        table = open_shard(files.resolve(uri, shard.path)).read_row_group(index, columns=list(columns))
        tables.append(as_edited(uri, shard, table.take(pa.array(stored - first)), stored))
        positions[members] = np.arange(taken, taken + len(members))
        taken += len(members)
    return pa.concat_tables(tables).take(pa.array(positions))
