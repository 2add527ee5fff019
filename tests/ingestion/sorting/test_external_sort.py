import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingestion.sorting import external_sort
from pipeline.ingestion.sorting.external_sort import in_memory_or_mapped, mapped_table, sorted_parts, take_rows

KEYS = st.lists(st.sampled_from(["", "a", "a b", "a/1", "b", "é", "z", "日本"]), max_size=30)


@contextmanager
def own_pool() -> Iterator[pa.MemoryPool]:
    """Lets Arrow allocate from a pool that counts, which lives as long as what was allocated may."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


_POOLS: list[pa.MemoryPool] = []


def table(keys: list[str]) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.string()), "at": pa.array([f"o{each}" for each in keys], pa.string())})


def many(parts: int, rows: int) -> Iterator[pa.Table]:
    """Yields tables of random keys, which have dictionaries of their own."""
    draws = np.random.default_rng(0)
    for part in range(parts):
        keys = [f"{number:012d}" for number in draws.integers(0, 10**12, rows)]
        objects = pa.array([f"object {part} {row % 3}" for row in range(rows)]).dictionary_encode()
        yield pa.table({"key": keys, "object": objects, "number": np.arange(rows)})


@given(st.lists(KEYS, min_size=1, max_size=8), st.integers(1, 400))
def test_rows_are_sorted_whatever_the_size_of_a_run(parts: list[list[str]], run_bytes: int) -> None:
    found = [part["key"].to_pylist() for part in sorted_parts(map(table, parts), "key", run_bytes)]
    assert [key for part in found for key in part] == sorted(key for part in parts for key in part)


def test_rows_stay_whole_and_dictionaries_are_their_own() -> None:
    found = pa.concat_tables(sorted_parts(many(20, 300), "key", 50_000))
    expected = pa.concat_tables(many(20, 300)).sort_by("key")
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist()


def test_sorting_takes_memory_for_runs_and_not_for_rows() -> None:
    """Eight times as many rows take no more of Arrow's memory."""
    peaks = []
    for parts in (8, 64):
        with own_pool() as pool:
            rows = sum(part.num_rows for part in sorted_parts(many(parts, 2000), "key", 200_000))
        peaks.append(pool.max_memory())
        assert rows == parts * 2000
    assert peaks[1] < 1.5 * peaks[0]


def test_a_mapped_table_takes_no_memory_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = list(many(4, 5000))
    before = pa.total_allocated_bytes()
    mapped = mapped_table(parts)
    assert pa.total_allocated_bytes() - before < 10_000
    assert mapped.equals(pa.concat_tables(parts))
    rows = np.random.default_rng(1).integers(0, 20_000, 500)
    assert mapped.take(pa.array(rows)).to_pylist() == pa.concat_tables(parts).take(pa.array(rows)).to_pylist()
    assert [each for _, _, names in os.walk(tmp_path) for each in names] == []


def test_rows_of_a_mapped_table_are_taken_without_copying_the_rest() -> None:
    parts = list(many(20, 5000))
    mapped, rows = mapped_table(parts), np.random.default_rng(1).integers(0, 100_000, 300)
    with own_pool() as pool:
        found = take_rows(mapped, rows)
    assert pool.max_memory() < mapped.nbytes / 10
    assert found.to_pylist() == pa.concat_tables(parts).take(pa.array(rows)).to_pylist()
    assert take_rows(mapped, rows[:0]).num_rows == 0
    assert take_rows(parts[0], np.array([2, 1])).to_pylist() == parts[0].take(pa.array([2, 1])).to_pylist()


def test_rows_stay_in_memory_where_the_disk_has_no_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One part fits."""
    parts, written = list(many(4, 100)), list[int]()

    def full(file: int, data: memoryview, offset: int) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(os.pwrite(file, data, offset))

    monkeypatch.setattr(external_sort, "write_all", full)
    external_sort._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert mapped_table(parts).equals(pa.concat_tables(parts))
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def test_a_small_table_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list(many(3, 100))
    monkeypatch.setattr(external_sort, "mapped_table", lambda parts: pytest.fail("mapped"))
    assert in_memory_or_mapped(iter(parts)).to_pylist() == pa.concat_tables(parts).to_pylist()


def test_a_large_table_is_mapped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list(many(5, 100))
    monkeypatch.setattr(external_sort, "MEMORY_BYTES", 2 * parts[0].nbytes)
    found = in_memory_or_mapped(iter(parts))
    assert found.equals(pa.concat_tables(parts))
    assert found["key"].num_chunks == len(parts)
