"""Places that a user gives: refused at once with the part that is wrong, and nothing is left behind."""

import os
from pathlib import Path

import pytest

from pipeline.core.errors import StorageError
from pipeline.storage import places
from pipeline.storage.places import check_folder, nearest
from tests.support.disks import full_disk


@pytest.mark.parametrize("name", ["new", "new/deeper", "there", "there/new", "ü ö/日本"])
def test_a_folder_that_can_be_made_is_fine_and_isnt_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    check_folder(str(tmp_path / name), "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_others_see_nothing_of_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looking:
        def __bytes__(self) -> bytes:  # called for what is written
            seen.append(os.listdir(tmp_path))
            return b"x"

    seen = list[list[str]]()
    monkeypatch.setattr(places, "_PAGE", Looking())
    check_folder(str(tmp_path), "out")
    assert seen == [[]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file", "run-dir={}/file: is a file, not a folder; give another path"),
        ("file/deeper/still", "run-dir={0}/file/deeper/still: {0}/file is a file, not a folder"),
        ("gone/below", "run-dir={0}/gone/below: {0}/gone is a file, not a folder"),
        ("x" * 300, "give a shorter path"),
    ],
)
def test_what_can_be_no_folder_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "gone")
    with pytest.raises(StorageError) as caught:
        check_folder(str(tmp_path / name), "run-dir")
    assert words.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["/proc/here", "/sys/here", "/dev/null/here"])
def test_where_nobody_may_write(place: str) -> None:
    with pytest.raises(StorageError, match=f"workspace={place}: .*give a"):
        check_folder(place, "workspace")


@pytest.mark.parametrize("name", ["", "new", "new/deeper"])
def test_a_full_disk_is_told_before_anything_is_done(tmp_path: Path, name: str) -> None:
    with full_disk(tmp_path / "disk") as disk:
        (disk / "there").mkdir()  # which it has room for
        with pytest.raises(StorageError, match=r"out=.*: .* has no room left: the disk is full; free some space"):
            check_folder(str(disk / name), "out")
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "there"]


def test_the_nearest_name_is_looked_for_at_the_first_part_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    assert nearest(str(tmp_path / "runs" / "flower")) == f"; did you mean {tmp_path}/runs/flowers?"
    assert nearest(str(tmp_path / "run" / "flowers")) == f"; did you mean {tmp_path}/runs?"
    assert nearest(str(tmp_path / "runs" / "xyz")) == ""
    assert nearest("s3://bucket/x") == ""
