"""An image on which a process dies costs that image, by name; all others are stored as ever."""

import errno
import os
import resource
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_table
from pipeline.ingestion import isolated_check
from pipeline.ingestion.image_check import ImageHandling, Refused, check_image
from pipeline.ingestion.isolated_check import check_isolated
from pipeline.ingestion.plan import IngestSettings, plan_shards
from pipeline.ingestion.quarantine import quarantine_table
from pipeline.ingestion.run import planned_ingest, write_dataset
from pipeline.ingestion.shard_task import Receipt, ShardContext, make_shard
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.storage import files
from tests.support.pictures.deadly import DeadlyContext, deadly
from tests.support.pictures.images import make_tree

SETTINGS = IngestSettings(shard_bytes=9000)


def index_of(tree: Path, planted: dict[str, str]) -> Index:
    """Returns the index of 51 + 51 images, of which some are deadly. planted: how, by name."""
    make_tree(tree, per_class=17)
    for name, how in planted.items():
        (tree / name).write_bytes(deadly((tree / name).read_bytes(), how))
    return open_source(str(tree), spool=str(tree.parent / "spool"))


def receipts_of(index: Index, out: Path, kind: type[ShardContext], guarded: bool) -> list[Receipt]:
    context = kind("p", str(out), index.encoding, index.classes, SETTINGS)
    shards = plan_shards(index, SETTINGS)
    guard = "process" if guarded else "none"
    return [make_shard(index.splits[s.split].take(pa.array(s.rows)), s, context, guard) for s in shards]


def comparable(receipt: Receipt) -> dict[str, object]:
    return {**asdict(receipt), "requests": None, "peak_bytes": None}


def test_shards_have_the_same_bytes_as_from_one_process(tree_index: Index, tmp_path: Path) -> None:
    plain = receipts_of(tree_index, tmp_path / "a", ShardContext, guarded=False)
    guarded = receipts_of(tree_index, tmp_path / "b", ShardContext, guarded=True)
    assert [comparable(receipt) for receipt in guarded] == [comparable(receipt) for receipt in plain]


def test_images_on_which_a_process_dies_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_check, "IMAGE_SECONDS", 1)
    planted = {
        "train/ant/003.jpg": "SIGSEGV",
        "train/bee/004.jpg": "hang",
        "train/cow/005.jpg": "exit",
        "train/cow/006.jpg": f"once {tmp_path / 'once'}",
        "val/ant/000.jpg": "SIGKILL",
        "val/ant/001.jpg": "SIGABRT",
    }
    index = index_of(tmp_path / "tree", planted)
    receipts = receipts_of(index, tmp_path / "out", DeadlyContext, guarded=True)
    refused = {row["key"]: row["reason"] for row in quarantine_table(index, receipts).to_pylist()}
    assert refused == {
        "train/ant/003.jpg": "crash: the process that decodes it ends with SIGSEGV",
        "train/bee/004.jpg": "too slow: not decoded within 1 s",
        "train/cow/005.jpg": "crash: the process that decodes it ends with status 3",
        "val/ant/000.jpg": "crash: the process that decodes it ends with SIGKILL",
        "val/ant/001.jpg": "crash: the process that decodes it ends with SIGABRT",
    }
    assert (tmp_path / "once").exists()
    # The others are stored as if the refused ones had not been able to be decoded.
    left = index_of(tmp_path / "left" / "tree", {name: how for name, how in planted.items() if "once" in how})
    for name in refused:
        (tmp_path / "left" / "tree" / name).write_bytes(b"text" + (tmp_path / "tree" / name).read_bytes()[4:])
    plain = receipts_of(left, tmp_path / "plain", ShardContext, guarded=False)
    assert [r.shard for r in receipts] == [r.shard for r in plain]


def test_a_child_may_not_take_all_memory(tree_index: Index) -> None:
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    samples = tree_index.splits["val"].slice(0, 3)

    def check(data: bytes | memoryview, position: int) -> Refused:
        try:
            return Refused(f"{len(bytearray(16 << 30))}", "")
        except MemoryError:
            return Refused("no memory", "")

    found = [image.reason for _, image in check_isolated(samples, check, {}) if isinstance(image, Refused)]
    assert found == ["no memory"] * 3
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


def test_rows_are_read_and_checked_in_pieces(tree_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_check, "_CHUNK_BYTES", 3000)
    samples = tree_index.splits["train"]

    def check(data: bytes | memoryview, position: int) -> object:
        return check_image(data, str(position), ImageHandling())

    found = sorted((position, len(data)) for (position, data), _ in check_isolated(samples, check, {}))
    assert found == list(enumerate(samples["length"].to_pylist()))


@pytest.mark.parametrize("guarded", [False, True])
def test_a_file_that_the_system_does_not_read_is_refused_by_name(
    tree_index: Index, tmp_path: Path, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files.read_range

    def read(uri: str, offset: int, length: int) -> memoryview:
        if uri.endswith("train/bee/004.jpg"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), uri)
        return whole(uri, offset, length)

    monkeypatch.setattr(files, "read_range", read)
    receipts = receipts_of(tree_index, tmp_path / "out", ShardContext, guarded)
    (refused,) = quarantine_table(tree_index, receipts).to_pylist()
    assert (refused["key"], refused["reason"]) == ("train/bee/004.jpg", "file not readable: Input/output error")
    assert sum(receipt.shard["rows"] for receipt in receipts) == 101


@pytest.mark.slow
def test_a_task_whose_process_dies_is_tried_again_and_goes_on(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three tasks die of an image each, and Ray tries them again; nobody else's images are lost."""
    planted = {"train/ant/003.jpg": "SIGSEGV", "val/cow/016.jpg": "SIGKILL"}
    index_of(tmp_path / "tree", planted)
    monkeypatch.setattr("pipeline.ingestion.run.ShardContext", DeadlyContext)
    settings = IngestSettings(shard_bytes=40_000)
    with planned_ingest(Source(str(tmp_path / "tree")), str(tmp_path / "out"), settings) as plan:
        write_dataset(plan, max_quarantined=2, num_workers=2)
    data = load(str(tmp_path / "out"))
    assert data.quarantined == {"crash": 2}
    assert data.splits["train"].rows + data.splits["val"].rows == 100
    refused = read_table(str(tmp_path / "out" / "quarantine.parquet"))["key"].to_pylist()
    assert refused == list(planted)
