"""Walking a tar from many places at once finds just what Python's tarfile finds from the start."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.cluster import ray_tasks
from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.archives import tars
from pipeline.ingestion.sources.archives.ranged import Place
from pipeline.ingestion.sources.archives.tars import scan
from pipeline.storage import files
from tests.support.pictures.images import make_tar


def archive(path: Path, kind: int, members: int = 300, seed: int = 0) -> Path:
    """A tar with long names (extended headers), folders, empty files, and whole tars as files: headers in the data."""
    random = np.random.default_rng(seed)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=kind) as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"inner/{number}.jpg")
            info.size = 700
            tar.addfile(info, io.BytesIO(random.bytes(700)))
    with tarfile.open(path, "w", format=kind) as tar:
        for number in range(members):
            long = "x" * 150 if kind != tarfile.USTAR_FORMAT and number % 7 == 0 else ""
            info = tarfile.TarInfo(f"train/c{number % 3}/{long}{number:04d}.jpg")
            data = inner.getvalue() if number % 11 == 0 else random.bytes(int(random.integers(0, 5000)))
            if number % 13 == 0:
                info.type, data = tarfile.DIRTYPE, b""
            if number % 17 == 0:
                data = b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that other tests left would do these small walks, slowly; tests/storage/test_s3.py has some by Ray."""
    monkeypatch.setattr(ray_tasks, "ray_is_initialized", lambda: False)


def reference(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]


def found(path: Path, offset: int = 0, length: int | None = None) -> list[tuple[str, int, int]]:
    tar = Place(str(path), str(path), offset, path.stat().st_size if length is None else length)
    return [(row["name"], row["offset"], row["length"]) for row in scan([tar])[0].to_pylist()]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stretch", [1 << 40, 100_000, 20_000, 3000, 512])
def test_any_number_of_walks_finds_the_members_that_tarfile_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, stretch: int
) -> None:
    monkeypatch.setattr(tars, "stretch_bytes", lambda tar: stretch)
    path = archive(tmp_path / "a.tar", kind)
    assert found(path) == reference(path)


def test_a_tar_inside_another_object_is_found_at_its_place(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", tarfile.PAX_FORMAT, 30)
    length = path.stat().st_size
    (tmp_path / "b").write_bytes(b"?" * 1000 + path.read_bytes() + b"?" * 50)
    expected = [(name, offset + 1000, size) for name, offset, size in reference(path)]
    assert found(tmp_path / "b", 1000, length) == expected


@pytest.mark.parametrize("stretch", [1 << 40, 20_000, 3000])
@pytest.mark.parametrize("damage", ["header", "cut", "cut between members", "no end"])
def test_damage_anywhere_is_found_by_any_number_of_walks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: int, damage: str
) -> None:
    """A damaged header in the middle would end tarfile's walk in silence, and lose half the archive."""
    monkeypatch.setattr(tars, "stretch_bytes", lambda tar: stretch)
    path = archive(tmp_path / "a.tar", tarfile.USTAR_FORMAT)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[members[150].offset + 148] ^= 0xFF
    elif damage == "cut":
        del data[members[151].offset_data + 100 :]
    elif damage == "cut between members":
        del data[members[150].offset :]
    else:
        del data[members[-1].offset_data + -(-members[-1].size // 512) * 512 :]
    path.write_bytes(data)
    with pytest.raises(SourceError, match="truncated"):
        found(path)


def test_contents_of_small_files_are_returned_on_request(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"a.jpg": b"1", "a.cls": b"7\n", "b.cls": b"x" * 5000})
    table = scan([Place("a", str(path), 0, path.stat().st_size)], keep=(".cls",))[0]
    assert table["content"].to_pylist() == [None, b"7\n", None]


def test_headers_far_apart_are_read_without_what_lies_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{n}.jpg": bytes(200_000) for n in range(50)})
    read = 0
    whole_read = files.read_range

    def counting(uri: str, offset: int, length: int) -> memoryview:
        nonlocal read
        read += length
        return whole_read(uri, offset, length)

    monkeypatch.setattr(files, "read_range", counting)
    assert len(found(path)) == 50
    assert read < 0.05 * path.stat().st_size
