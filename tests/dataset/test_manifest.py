import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest, Shard, Split

SHARDS = (
    Shard("train/0", 3, 10, "aa", (2, 1), (4, 7), (3, 2), "provenance/train/0", "cc"),
    Shard("train/1", 2, 9, "bb", (2,), (4,), (3,), "provenance/train/1", "dd"),
)
SPLIT = Split(5, (2, 3), SHARDS)


def signed() -> Manifest:
    return Manifest("tiny", ("ant", "bee"), 0, {"train": SPLIT}, leaked={"val": ("a", "b")}).with_digest()


def test_a_manifest_survives_its_json() -> None:
    assert manifest.parse(signed().to_json(), "here") == signed()


def test_a_data_set_of_another_name_is_the_same_data_set() -> None:
    assert dataclasses.replace(signed(), name="other").computed_digest() == signed().digest


def test_row_groups_are_counted_across_shards() -> None:
    assert SPLIT.row_group_rows == (2, 1, 2)
    assert [(shard.path, index) for shard, index in SPLIT.row_group_places] == [
        ("train/0", 0),
        ("train/0", 1),
        ("train/1", 0),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["classes"].reverse(), "doesn't match its own digest"),
        (lambda values: values["splits"]["train"]["shards"].pop(), "doesn't match its own digest"),
        (lambda values: values["leaked"]["val"].pop(), "doesn't match its own digest"),
        (lambda values: values.pop("classes"), "not a manifest"),
        (lambda values: values.update(schema_version=99), "schema 99, this program reads 2 and 3"),
    ],
)
def test_an_edited_manifest_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    values = json.loads(signed().to_json())
    change(values)
    with pytest.raises(DatasetError, match=message):
        manifest.parse(json.dumps(values).encode(), "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a manifest of this project"),
        (b"\xff\xfe", "not a manifest of this project"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b'{"schema_version": 2', "not a manifest of this project"),
        (b"{}", "missing required field `schema_version`"),
        (signed().to_json().replace(b'"rows": 5', b'"rows": "5"'), r"Expected `int`, got `str` - at `\$\.splits"),
        (signed().to_json()[:-20], "not a manifest of this project"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line_that_names_the_field(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        manifest.parse(data, "here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


def test_an_unfinished_data_set_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert not manifest.is_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match=r"no manifest\.json, so no finished data set"):
        manifest.load(str(tmp_path))


def test_an_unknown_split_is_answered_with_those_there_are() -> None:
    with pytest.raises(DatasetError, match="holds train"):
        signed().split("val")
