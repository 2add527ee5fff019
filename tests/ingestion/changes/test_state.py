"""The recorded state of a source: what tells without a read whether an image has changed."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingestion.changes.state import STATE_SCHEMA, read_state, same_state, state_of
from pipeline.ingestion.sources import Index, open_source
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tar, make_tree, tree_files, write_tree

LONG_AGO_NS = 1_700_000_000_123_456_789


def age(root: Path, modified_ns: int = LONG_AGO_NS) -> None:
    """Sets the time of change of all files."""
    for path in root.rglob("*") if root.is_dir() else [root]:
        os.utime(path, ns=(modified_ns, modified_ns))


def state_at(source: Path | str, spool: Path) -> pa.Table:
    return state_of(open_source(str(source), spool=str(spool)))


def changed_keys(before: pa.Table, after: pa.Table) -> list[str]:
    return [str(key) for key in np.array(after["key"].to_pylist())[~same_state(after, before)]]


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        (None, None, True),
        ("object", "b.jpg", False),
        ("object", None, False),
        ("offset", 1, False),
        ("length", 8, False),
        ("modified_ns", LONG_AGO_NS + 1, False),
        ("modified_ns", None, False),  # the time says nothing
        ("etag", "e", False),  # a store and a disk: nothing to compare
    ],
)
def test_a_row_of_a_disk_is_the_same_if_object_place_length_and_time_are(field: str, value: Any, same: bool) -> None:
    row = {
        "split": "train", "key": "a", "class": "cat", "object": "a.jpg", "offset": 0, "length": 7,
        "modified_ns": LONG_AGO_NS, "etag": "",
    }  # fmt: skip
    before = pa.Table.from_pylist([row], schema=STATE_SCHEMA)
    after = pa.Table.from_pylist([{**row, **({field: value} if field else {})}], schema=STATE_SCHEMA)
    assert same_state(after, before).tolist() == same_state(before, after).tolist() == [same]
    # in a store the ETag decides, and not the time: an object that is put again with the same bytes is the same
    before, after = (each.set_column(7, STATE_SCHEMA.field("etag"), [["e"]]) for each in (before, after))
    assert same_state(after, before).tolist() == [same or field in ("modified_ns", "etag")]


def test_a_file_that_is_overwritten_by_as_many_bytes_is_noticed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    age(tree)
    before = state_at(tree, tmp_path)
    assert changed_keys(before, state_at(tree, tmp_path)) == []
    place = tree / "val" / "bee" / "003.jpg"
    place.write_bytes(bytes(reversed(place.read_bytes())))
    assert changed_keys(before, state_at(tree, tmp_path)) == ["val/bee/003.jpg"]
    os.utime(place, ns=(LONG_AGO_NS + 1,) * 2)  # also if somebody sets its time back, unless to the very same
    assert changed_keys(before, state_at(tree, tmp_path)) == ["val/bee/003.jpg"]


def test_the_time_of_a_file_that_was_just_written_says_nothing(tmp_path: Path) -> None:
    """It may be written again within the same tick of the clock, with as many bytes, after it was listed."""
    tree = make_tree(tmp_path / "tree")
    age(tree)
    age(tree / "train" / "ant" / "000.jpg", time.time_ns())
    age(tree / "train" / "ant" / "001.jpg", time.time_ns() + 10**12)  # the clock of another machine
    state = state_at(tree, tmp_path)
    assert changed_keys(state, state) == ["train/ant/000.jpg", "train/ant/001.jpg"]


def test_a_copy_that_keeps_the_times_is_the_same(tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / name) for name in ("here", "there")]
    for tree in trees:
        age(tree)
    here, there = (state_at(tree, tmp_path) for tree in trees)
    assert here.equals(there)
    age(trees[1] / "train")
    age(trees[1], LONG_AGO_NS + 1)
    assert len(changed_keys(here, state_at(trees[1], tmp_path))) == here.num_rows


def test_the_rows_of_a_tar_have_its_time_and_those_that_are_unpacked_none(tmp_path: Path) -> None:
    content = tree_files(make_tree(tmp_path / "tree"))
    tar, packed = make_tar(tmp_path / "a.tar", content), make_tar(tmp_path / "b.tar.gz", content, "w:gz")
    for path in (tar, packed):
        age(path)
    state = state_at(tar, tmp_path / "spool")
    assert same_state(state, state).all()
    assert set(state["object"].to_pylist()) == {""}
    assert len(set(state["offset"].to_pylist())) == state.num_rows
    unpacked = state_at(packed, tmp_path / "spool")
    assert not same_state(unpacked, unpacked).any()  # it was read to be unpacked, and is compared by its bytes
    folder = write_tree(tmp_path / "folder", {"train.tar": make_tar(tmp_path / "t.tar", content).read_bytes()})
    age(folder)
    assert set(state_at(folder, tmp_path)["object"].to_pylist()) == {"train.tar"}


@pytest.mark.ray
def test_an_object_is_known_by_its_etag(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/state"
    content = tree_files(make_tree(tmp_path / "tree"))
    for name, data in content.items():
        files.write_bytes(f"{uri}/{name}", data)
    before = state_at(uri, tmp_path)
    files.write_bytes(f"{uri}/train/ant/000.jpg", content["train/ant/000.jpg"])
    assert changed_keys(before, state_at(uri, tmp_path)) == []
    files.write_bytes(f"{uri}/train/ant/000.jpg", bytes(reversed(content["train/ant/000.jpg"])))
    assert changed_keys(before, state_at(uri, tmp_path)) == ["train/ant/000.jpg"]
    assert before["object"].to_pylist() == list(content)


def test_an_ingest_records_the_images_that_it_could_use(tree_index: Index, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "train/bee/002.jpg").write_bytes(b"I am text")
    (tree / "val/ant/000.jpg").write_bytes(jpeg(5))
    index = open_source(str(tree), spool=str(tmp_path / "spool"))
    ingest_here(index, str(tmp_path / "out"), shard_size=9000)
    state = read_state(str(tmp_path / "out"))
    assert state.num_rows == 101
    assert "train/bee/002.jpg" not in state["key"].to_pylist()
    assert state.drop(["modified_ns"]).equals(
        state_of(index, {"train": pa.array(["train/bee/002.jpg"])}).drop(["modified_ns"])
    )
    assert state["class"].to_pylist() == [key.split("/")[1] for key in state["key"].to_pylist()]
    assert read_state(str(tmp_path / "older")).num_rows == 0
