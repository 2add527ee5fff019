import shutil
from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.versions.drop import drop_version
from pipeline.versions.listing import list_versions
from tests.support.pictures.datasets import copied


def test_each_version_says_what_it_adds_removes_and_relabels(family: Path) -> None:
    first, second, third = list_versions(family)
    assert (first.name, first.rows, first.added, first.removed, first.relabelled, first.parent) == (
        "v1", 102, 102, 0, 0, ""
    )  # fmt: skip
    assert (second.name, second.rows, second.added, second.removed, second.relabelled, second.parent) == (
        "v2", 112, 12, 2, 1, "v1"
    )  # fmt: skip
    assert (third.name, third.rows, third.added, third.removed, third.relabelled, third.parent) == (
        "v3", 111, 0, 1, 1, "v2"
    )  # fmt: skip
    assert third.digest == manifest.load(str(family / "v3")).digest
    assert (first.shared_bytes, third.own_bytes) == (0, 0)
    sizes = {name: sum(path.stat().st_size for path in family.glob(f"{name}/[tv]*/*.parquet")) for name in ("v1", "v2")}
    assert (first.own_bytes, second.own_bytes) == (sizes["v1"], sizes["v2"])
    assert third.shared_bytes == sizes["v1"] + sizes["v2"]


def test_a_version_whose_parent_is_elsewhere_says_so_by_its_digest(family: Path) -> None:
    digest = manifest.load(str(family / "v1")).digest
    (family.parent / "elsewhere").mkdir()
    shutil.move(family / "v1", family.parent / "elsewhere" / "v1")
    second = list_versions(family)[0]
    assert (second.name, second.parent, second.added, second.removed, second.relabelled) == (
        "v2", digest[:12], 12, None, None
    )  # fmt: skip


def test_a_dropped_version_is_listed_while_others_need_its_shards(family: Path) -> None:
    size = list_versions(family)[0].own_bytes
    drop_version(family / "v1")
    found = {each.name: each for each in list_versions(family)}
    assert found["v1"].dropped
    assert (found["v1"].rows, found["v1"].own_bytes) == (0, size)
    assert (found["v2"].parent, found["v2"].removed) == ("v1", None)


def test_versions_in_a_bucket_are_listed(family: Path, s3: str) -> None:
    for name in ("v1", "v2", "v3"):
        copied(str(family / name), f"{s3}/listed/{name}")
    there, here = ({each.name: each for each in list_versions(place)} for place in (f"{s3}/listed", family))
    assert {name: (each.rows, each.digest, each.parent) for name, each in there.items()} == {
        name: (each.rows, each.digest, each.parent) for name, each in here.items()
    }


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothere", "no such folder; give the folder that the versions lie in"),
        ("photo", r"no such folder; .*; did you mean \S+/photos\?"),
        ("photos/v1", r"is a data set itself; give the folder that it lies in: \S+/photos$"),
        ("photos/v1/README.md", "is a file"),
        ("photos/v1/train", "no version lies in it"),
    ],
)
def test_a_place_without_versions_is_refused(family: Path, place: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        list_versions(family.parent / place)
