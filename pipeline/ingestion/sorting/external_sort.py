"""Sorts tables that may be larger than memory: runs are sorted in memory, kept in files, and merged range by range.

The files have no name, so they are gone with the process, however it ends. A small table never leaves memory.
"""

import itertools
import logging
import mmap
import os
import tempfile
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.user_folders import cache_folder
from pipeline.dataset.cache_folder import write_all

_log = logging.getLogger(__name__)

RUN_BYTES = 256 << 20
"""Of rows that are sorted at a time, which takes about three times as much memory."""
MEMORY_BYTES = 512 << 20
"""Of a table that stays in memory."""
_SAMPLES = 64  # of each run, by which ranges are chosen: they differ by a 64th of a run for each run


def sorted_parts(tables: Iterable[pa.Table], column: str, run_bytes: int | None = None) -> Iterator[pa.Table]:
    """Yields the rows of tables of one schema, sorted by a column of texts, in parts of about `run_bytes`.

    Takes memory for a few parts, and as much disk as the tables have bytes if they have more than `run_bytes`.
    run_bytes: None for RUN_BYTES.
    """
    run_bytes = run_bytes or RUN_BYTES
    runs, waiting, num_bytes = list[pa.Table](), list[pa.Table](), 0
    table = None
    for table in tables:
        if not table.num_rows:
            continue
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= run_bytes:
            runs.append(mapped_table([_sorted(waiting, column)]))
            waiting, num_bytes = [], 0
    if waiting:
        runs.append(_sorted(waiting, column))
    if len(runs) < 2:
        yield from runs or ([] if table is None else [table])
        return
    splitters = _splitters(runs, column)
    cuts = np.array([_cuts(run, column, splitters) for run in runs])
    for first, last in zip(cuts.T[:-1].tolist(), cuts.T[1:].tolist(), strict=True):
        pieces = [run.slice(start, stop - start) for run, start, stop in zip(runs, first, last, strict=True)]
        if any(piece.num_rows for piece in pieces):
            yield _sorted(pieces, column)


def in_memory_or_mapped(parts: Iterable[pa.Table]) -> pa.Table:
    """Returns the rows of tables of one schema, one after another: in memory, up to MEMORY_BYTES, or in a file."""
    remaining, held, num_bytes = iter(parts), deque[pa.Table](), 0
    for part in remaining:
        held.append(part)
        num_bytes += part.nbytes
        if num_bytes > MEMORY_BYTES:
            return mapped_table(itertools.chain((held.popleft() for _ in range(len(held))), remaining))
    return pa.concat_tables(held).combine_chunks()


def mapped_table(parts: Iterable[pa.Table]) -> pa.Table:
    """Returns the rows of tables of one schema, one after another, in a file rather than in memory.

    Each part is a chunk of the table. Where the disk has no room, the rows stay in memory, which a warning says once.
    """
    file, ends, kept = _unnamed_file(), [0], list[pa.Table]()
    for part in parts:
        if not kept:
            data = _stream_bytes(part)
            try:
                write_all(file.fileno(), data, ends[-1])
                ends.append(ends[-1] + len(data))
                continue
            except OSError as error:
                _warn_once(error.strerror or str(error))
        kept.append(part)
    if len(ends) > 1:
        whole = pa.py_buffer(mmap.mmap(file.fileno(), ends[-1], access=mmap.ACCESS_READ))
        kept[:0] = [pa.ipc.open_stream(whole[start:stop]).read_all() for start, stop in itertools.pairwise(ends)]
    return pa.concat_tables(kept)


def take_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Returns rows of a table, in their order. Of texts, Arrow's `take` would copy all chunks into one before."""
    lengths = [len(chunk) for chunk in table.column(0).chunks]
    if len(lengths) < 2:
        return table.take(pa.array(rows))
    ends = np.cumsum(lengths)
    chunk_of = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk_of, kind="stable")
    cuts = np.searchsorted(chunk_of[order], np.arange(len(lengths) + 1))
    pieces = [table.slice(0, 0)]
    for end, length, (first, last) in zip(ends, lengths, itertools.pairwise(cuts), strict=True):
        if last > first:
            start = int(end) - length
            pieces.append(table.slice(start, length).take(pa.array(rows[order[first:last]] - start)))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(places))


def _stream_bytes(part: pa.Table) -> memoryview:
    """Returns a table as a stream of Arrow's, which, unlike a file of Arrow's, has its own dictionaries."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, part.schema) as writer:
        writer.write_table(part)
    return memoryview(out.getvalue())


def _sorted(tables: list[pa.Table], column: str) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks().sort_by(column).combine_chunks()


def _splitters(runs: list[pa.Table], column: str) -> list[str]:
    """Returns texts between which about as many rows lie as a run has, one fewer than there are runs."""
    samples: list[str] = []
    for run in runs:
        places = np.arange(_SAMPLES) * run.num_rows // _SAMPLES
        samples += run[column].take(pa.array(places)).to_pylist()
    return sorted(samples)[_SAMPLES::_SAMPLES]


def _cuts(run: pa.Table, column: str, splitters: list[str]) -> list[int]:
    """Returns where each range begins in a run, and where the last one ends."""
    texts = run[column].chunk(0)
    inner = [bisect_left(range(run.num_rows), each, key=lambda row: texts[row].as_py()) for each in splitters]
    return [0, *inner, run.num_rows]


def _unnamed_file() -> IO[bytes]:
    folder = cache_folder()
    try:
        os.makedirs(folder, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:
        return tempfile.TemporaryFile(buffering=0)


@lru_cache(maxsize=4)
def _warn_once(error: str) -> None:
    _log.warning("%s has no room for tables (%s): they stay in memory; set XDG_CACHE_HOME", cache_folder(), error)
