"""Zips and compressed tars: the same rows as the folder, and one line for each kind of damage."""

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.ingestion.sources.archives import zips
from pipeline.ingestion.sources.members import stem_of
from tests.support.pictures.images import make_tar, make_tree, rows_of, tree_files


def opened(path: Path, tmp_path: Path) -> Index:
    return open_source(Source(str(path)), spool=str(tmp_path / "spool"))


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tar_bytes(files: dict[str, bytes], tmp_path: Path) -> bytes:
    return make_tar(tmp_path / "plain.tar", files).read_bytes()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)  # as the program zstd does


PACKINGS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "stored.zip": lambda root, files: make_zip(root / "stored.zip", files, zipfile.ZIP_STORED),
    "deflated.zip": lambda root, files: make_zip(root / "deflated.zip", files),
    "bzip2.zip": lambda root, files: make_zip(root / "bzip2.zip", files, zipfile.ZIP_BZIP2),
    "lzma.zip": lambda root, files: make_zip(root / "lzma.zip", files, zipfile.ZIP_LZMA),
    "below.zip": lambda root, files: make_zip(root / "below.zip", {f"photos/{n}": d for n, d in files.items()}),
    "windows.zip": lambda root, files: make_zip(
        root / "windows.zip", {n.replace("/", "\\"): d for n, d in files.items()}
    ),
    "x.tar.zst": lambda root, files: written(root / "x.tar.zst", zstd(tar_bytes(files, root))),
    "x.tar.bz2": lambda root, files: written(root / "x.tar.bz2", bz2.compress(tar_bytes(files, root))),
    "x.tgz": lambda root, files: written(root / "x.tgz", gzip.compress(tar_bytes(files, root))),
    "tar in.zip": lambda root, files: make_zip(root / "tar in.zip", {"photos.tar": tar_bytes(files, root)}),
    "misnamed.jpg": lambda root, files: make_zip(root / "misnamed.jpg", files),
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_archive_of_a_tree_gives_the_same_rows(tmp_path: Path, packing: str) -> None:
    tree = make_tree(tmp_path / "tree")
    expected = rows_of(opened(tree, tmp_path))
    files = tree_files(tree)
    path = PACKINGS[packing](tmp_path, files)
    if packing == "windows.zip":  # its directory says that MS-DOS made it
        path.write_bytes(path.read_bytes().replace(b"PK\x01\x02\x14\x03", b"PK\x01\x02\x14\x00"))
    index = opened(path, tmp_path)
    assert rows_of(index) == expected
    assert index.name == packing.split(".")[0] or packing == "misnamed.jpg"
    assert not index.unusable


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.tar.zst", "a"),
        ("a.tgz", "a"),
        ("a.TAR.GZ", "a"),
        ("a.b.zip", "a.b"),
        ("a.xz", "a"),
        ("zip", "zip"),
        ("a", "a"),
    ],
)
def test_the_name_of_a_data_set_has_no_suffix_of_an_archive(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_members_of_a_stored_zip_are_read_in_place(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", tree_files(make_tree(tmp_path / "t")), zipfile.ZIP_STORED)
    index = opened(path, tmp_path)
    assert {str(path)} == {each for table in index.splits.values() for each in table["object"].to_pylist()}
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_cut_zip_is_refused_in_one_line(tmp_path: Path, method: int, share: float) -> None:
    data = make_zip(tmp_path / "a.zip", tree_files(make_tree(tmp_path / "t")), method).read_bytes()
    cut = written(tmp_path / "cut.zip", data[: int(len(data) * share)])
    with pytest.raises(SourceError, match=r"cut\.zip: the zip is truncated or damaged .*; download it again$"):
        opened(cut, tmp_path)


@pytest.mark.parametrize("compress", [zstd, bz2.compress])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_a_cut_compressed_tar_is_refused_in_one_line(
    tmp_path: Path, compress: Callable[[bytes], bytes], share: float
) -> None:
    data = compress(tar_bytes(tree_files(make_tree(tmp_path / "t")), tmp_path))
    cut = written(tmp_path / "cut.tar.x", data[: int(len(data) * share)])
    with pytest.raises(SourceError, match=r"cut\.tar\.x: the archive is truncated.*download it again$"):
        opened(cut, tmp_path)


@pytest.mark.parametrize("compress", [zstd, bz2.compress, gzip.compress])
def test_a_damaged_compressed_tar_is_refused_in_one_line(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(tar_bytes(tree_files(make_tree(tmp_path / "t")), tmp_path)))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    with pytest.raises(SourceError, match=r"truncated or damaged.*download it again$"):
        opened(written(tmp_path / "bad.tar.x", bytes(data)), tmp_path)


@pytest.mark.parametrize("name", ["../evil.jpg", "train/../../evil.jpg", "/etc/evil.jpg", "C:/evil.jpg"])
def test_a_member_of_a_zip_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="points outside the archive"):
        opened(make_zip(tmp_path / "a.zip", {name: b"x"}), tmp_path)


def test_an_encrypted_zip_is_refused_with_the_remedy(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "a.zip", tree_files(make_tree(tmp_path / "t"))).read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1  # the flag of encryption
    with pytest.raises(SourceError, match="is encrypted; unpack the zip with its password"):
        opened(written(tmp_path / "locked.zip", bytes(data)), tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train/cat/1.bmp", "w") as out:
        for _ in range(5):
            out.write(bytes(1 << 20))
    with pytest.raises(SourceError, match="mark of a zip bomb"):
        opened(path, tmp_path)
    assert not (tmp_path / "spool").exists()


def test_members_that_share_their_bytes_are_the_mark_of_a_bomb(tmp_path: Path) -> None:
    data = make_zip(tmp_path / "a.zip", {"train/cat/1.jpg": b"x" * 5000}, zipfile.ZIP_STORED).read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, tail = data[start:end], bytearray(data[end:])
    tail[8:12] = (50).to_bytes(2, "little") * 2  # entries in the directory
    tail[12:16] = (50 * len(entry)).to_bytes(4, "little")
    with pytest.raises(SourceError, match="mark of a zip bomb"):
        opened(written(tmp_path / "shared.zip", data[:start] + 50 * entry + bytes(tail)), tmp_path)


def test_one_damaged_member_of_a_zip_goes_to_quarantine_by_name(tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "t"))
    data = bytearray(make_zip(tmp_path / "a.zip", files).read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        info = archive.getinfo("train/bee/002.jpg")
    data[info.header_offset + 30 + len(info.filename) + 40] ^= 0xFF
    index = opened(written(tmp_path / "bad.zip", bytes(data)), tmp_path)
    assert [(each.key, each.split) for each in index.unusable] == [("train/bee/002.jpg", "train")]
    assert index.unusable[0].reason.startswith("damaged in the zip")
    assert index.num_labelled == len(files)


def test_a_symbolic_link_in_a_zip_goes_to_quarantine_by_name(tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "t"))
    path = make_zip(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("train/ant/link.jpg")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    index = opened(path, tmp_path)
    assert [(each.key, each.reason) for each in index.unusable] == [("train/ant/link.jpg", "a symbolic link in a zip")]
