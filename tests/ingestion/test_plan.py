import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.cost import estimate
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import (
    GAP_BYTES,
    READ_BYTES,
    IngestSettings,
    plan_id,
    plan_reads,
    plan_shards,
    row_group_rows,
)
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources import Index, open_source
from pipeline.ingestion.sources.index import sample_table
from tests.support.pictures.images import make_tar, make_tree, sample_bytes, tree_files


@pytest.mark.parametrize("shard_size", [1, 3000, 10_000_000])
def test_a_plan_holds_every_row_once(tree_index: Index, shard_size: int) -> None:
    plans = plan_shards(tree_index, IngestSettings(0, shard_size))
    for split, table in tree_index.splits.items():
        rows = np.concatenate([plan.rows for plan in plans if plan.split == split])
        assert np.array_equal(np.sort(rows), np.arange(table.num_rows))
    assert len({plan.path for plan in plans}) == len(plans)


def test_row_groups_are_of_equal_size_but_the_last_of_a_split() -> None:
    count = 10_007
    table = sample_table(
        [f"{n:05d}" for n in range(count)], [0] * count, ["x"] * count, range(count), [110_000] * count
    )
    index = Index("x", "folders", ("a", "b"), "file", {"train": table}, "f")
    plans = plan_shards(index, IngestSettings())
    sizes = [min(64, len(plan.rows) - start) for plan in plans for start in range(0, len(plan.rows), 64)]
    assert plans[0].row_group_rows == 64
    assert set(sizes[:-1]) == {64}
    assert len(plans) == 6
    largest = max(len(plan.rows) for plan in plans) * 110_000
    assert 128 << 20 < largest < 256 << 20


def test_a_plan_follows_from_keys_and_seed_alone(tree_index: Index) -> None:
    def keys(seed: int) -> list[str]:
        table = tree_index.splits["train"]
        rows = np.concatenate([p.rows for p in plan_shards(tree_index, IngestSettings(seed)) if p.split == "train"])
        return table.take(rows)["key"].to_pylist()

    assert keys(0) == keys(0)
    assert keys(0) != keys(1)
    assert keys(0) != sorted(keys(0))


@pytest.mark.parametrize(("mean", "rows"), [(1, 512), (1_000, 512), (110_000, 64), (600_000, 16), (50_000_000, 16)])
def test_a_row_group_is_a_power_of_two_near_8_mib(mean: float, rows: int) -> None:
    assert row_group_rows(mean) == rows


def samples(places: list[tuple[str, int, int]]) -> pa.Table:
    keys = [f"{n:03d}" for n in range(len(places))]
    return sample_table(keys, [0] * len(places), *zip(*places, strict=True))


@pytest.mark.parametrize(
    ("places", "reads"),
    [
        ([("a", 0, 10)], [("a", 0, 10, (0,))]),
        ([("a", 0, 10), ("a", 10, 10)], [("a", 0, 20, (0, 1))]),
        ([("a", 10, 10), ("a", 0, 10)], [("a", 0, 20, (1, 0))]),  # in whatever order the shard wants them
        ([("a", 0, 10), ("b", 10, 10)], [("a", 0, 10, (0,)), ("b", 10, 10, (1,))]),
        ([("a", 0, 10), ("a", 10 + GAP_BYTES, 5)], [("a", 0, 15 + GAP_BYTES, (0, 1))]),
        ([("a", 0, 10), ("a", 11 + GAP_BYTES, 5)], [("a", 0, 10, (0,)), ("a", 11 + GAP_BYTES, 5, (1,))]),
        ([("a", 0, READ_BYTES), ("a", READ_BYTES, 1)], [("a", 0, READ_BYTES, (0,)), ("a", READ_BYTES, 1, (1,))]),
        ([("a", 0, 10), ("a", 2, 3)], [("a", 0, 10, (0, 1))]),  # one in the other
        ([("a", 5, 0), ("a", 0, 10)], [("a", 0, 10, (1,))]),  # empty files are not read
        ([("a", 0, 1 << 40), ("a", 0, 10)], [("a", 0, 10, (1,))]),  # nor those too large to be stored
    ],
)
def test_ranges_that_nearly_touch_are_read_together(
    places: list[tuple[str, int, int]], reads: list[tuple[str, int, int, tuple[int, ...]]]
) -> None:
    found = [(read.object, read.offset, read.length, read.rows) for read in plan_reads(samples(places))]
    assert sorted(found) == sorted(reads)


def test_gathered_bytes_are_those_of_the_rows(tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "tree", per_class=30))
    make_tar(tmp_path / "a.tar", files)
    index = open_source(str(tmp_path / "a.tar"), spool=str(tmp_path))
    table = index.splits["train"].take(pa.array(np.random.default_rng(0).permutation(90)))
    assert sample_bytes(table) == [files[key] for key in table["key"].to_pylist()]
    assert len(list(plan_reads(table))) < 90


def test_a_gather_that_is_left_early_leaves_no_thread(tmp_path: Path) -> None:
    table = open_source(str(make_tree(tmp_path / "t", per_class=30)), spool="").splits["train"]
    before = threading.active_count()
    for _ in gather(table):
        break
    assert threading.active_count() == before


def test_a_file_that_has_gone_or_shrunk_since_is_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t")
    table = open_source(str(tree), spool="").splits["train"]
    (tree / "train/ant/001.jpg").write_bytes(b"x")
    with pytest.raises(OSError, match=r"train/ant/001\.jpg.* has changed"):
        list(gather(table))
    (tree / "train/ant/001.jpg").unlink()
    with pytest.raises(SourceError, match=r"train/ant/001\.jpg.* is gone"):
        list(gather(table))


def test_an_unfinished_ingest_is_continued_under_the_same_plan_alone(tree_index: Index) -> None:
    def identity(
        index: Index = tree_index, settings: IngestSettings | None = None, removed: frozenset[bytes] = frozenset()
    ) -> str:
        settings = settings or IngestSettings()
        return plan_id(index, settings, plan_shards(index, settings), removed)

    assert identity() == identity()
    others = [
        identity(settings=IngestSettings(seed=1)),
        identity(settings=IngestSettings(handling=ImageHandling(checks="header"))),
        identity(settings=IngestSettings(shard_bytes=3000)),
        identity(replace(tree_index, fingerprint="other")),
        identity(replace(tree_index, classes=("ant", "bee", "dog"))),
        identity(replace(tree_index, splits={"train": tree_index.splits["train"]})),
        identity(removed=frozenset({bytes(32)})),
    ]
    assert len({identity(), *others}) == 8


def test_an_estimate_counts_the_requests_of_s3_alone(tree_index: Index) -> None:
    shards = plan_shards(tree_index, IngestSettings())
    local = estimate(tree_index, shards, IngestSettings(), "/out", 2)
    assert (local.rows, local.reads, local.writes) == (102, 0, 0)
    moved = {}
    for split, table in tree_index.splits.items():
        columns = {name: table[name].to_pylist() for name in table.column_names}
        objects = [f"s3://b{path}" for path in columns["object"]]
        moved[split] = sample_table(columns["key"], columns["label"], objects, columns["offset"], columns["length"])
    remote = estimate(replace(tree_index, splits=moved), shards, IngestSettings(), "s3://b/out", 2)
    assert remote.reads == 102
    assert remote.writes >= 3 * len(shards)
    assert remote.money > local.money
