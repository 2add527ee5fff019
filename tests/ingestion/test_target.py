from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError, SourceError, StorageError
from pipeline.ingestion.run import planned_ingest
from pipeline.ingestion.sources import Source
from pipeline.ingestion.target import check_target
from pipeline.storage import files
from tests.support.disks import full_disk
from tests.support.pictures.images import make_tree, tree_files


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: files.write_bytes(str(out / "manifest.json"), b"{}"), "holds a finished data set"),
        (lambda out: files.write_bytes(str(out / "thesis.txt"), b"mine"), r"holds other files \('thesis.txt'\)"),
        (lambda out: files.write_bytes(str(out / "mine.parquet"), b"mine"), r"holds other files \('mine.parquet'\)"),
        (lambda out: out.write_bytes(b""), "is a file"),
    ],
)  # fmt: skip
def test_a_target_in_use_is_left_alone(tmp_path: Path, prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    prepare(out)
    before = tree_files(out) if out.is_dir() else {}
    with pytest.raises(DatasetError, match=message), planned_ingest(Source("digits", "digits"), str(out)):
        pass
    assert (tree_files(out) if out.is_dir() else {}) == before


def test_a_target_that_another_process_checks_or_was_killed_checking_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".check-abcd1234").write_bytes(bytes(4096))
    check_target(str(tmp_path / "out"))
    (tmp_path / "out" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"holds other files \('mine.parquet'\)"):
        check_target(str(tmp_path / "out"))


def test_a_target_inside_the_source_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    with (
        pytest.raises(DatasetError, match="lies inside the source"),
        planned_ingest(Source(str(tree)), str(tree / "out")),
    ):
        pass
    assert not (tree / "out").exists()


def test_a_source_that_cannot_be_used_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x.csv").write_text("1")
    with (
        pytest.raises(SourceError, match="no known layout"),
        planned_ingest(Source(str(tmp_path / "source")), str(tmp_path / "out")),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_on_a_full_disk_is_refused_by_its_flag(tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk") as disk:
        (disk / "out").mkdir()
        with pytest.raises(StorageError, match=r"^out=.*/disk/out: it has no room left: the disk is full"):
            check_target(str(disk / "out"))
