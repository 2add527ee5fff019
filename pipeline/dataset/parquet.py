"""Reads the Parquet files of a data set: provenance, small tables, and single rows of shards."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.edits import as_edited, live_rows
from pipeline.dataset.manifest import Manifest, Shard, Split
from pipeline.dataset.records import Rows
from pipeline.storage import files

_TABLE_READERS = 16


def parquet_bytes(table: pa.Table) -> bytes:
    """Returns a table as the content of a Parquet file."""
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue().to_pybytes()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Returns columns (None: all) of a Parquet file, which is read whole, by one request."""
    return pq.read_table(pa.BufferReader(files.read_bytes(uri)), columns=columns)


def read_split_provenance(uri: str, split: Split, columns: list[str]) -> pa.Table:
    """Returns columns of PROVENANCE_SCHEMA for all rows of a split, in its order; reads up to 16 files at a time."""
    with ThreadPoolExecutor(_TABLE_READERS) as pool:
        return pa.concat_tables(pool.map(lambda shard: _provenance(uri, shard, columns), split.shards))


def _provenance(uri: str, shard: Shard, columns: list[str]) -> pa.Table:
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
    table = read_split_provenance(uri, split, ["key"])
    return np.flatnonzero(pa.compute.is_in(table["key"], value_set=pa.array(keys)).to_numpy())


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
