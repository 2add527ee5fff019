"""Zips and compressed tars: the same rows as the folder, and one line for each kind of damage."""

import bz2
import contextlib
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import SourceError
from pipeline.core.progress import silent
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.ingestion.sources.archives import zips
from pipeline.ingestion.sources.archives.ranged import Place
from pipeline.ingestion.sources.members import stem_of
from tests.support.pictures.images import jpeg, make_tar, make_tree, rows_of, tree_files


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


def patched(path: Path, data: bytes, name: str, field: int, value: bytes) -> Path:
    """Writes a zip with bytes of a member's local header, and the same ones of its entry in the directory, changed.

    field: their offset in the local header; the entry has two bytes more before it.
    """
    changed = bytearray(data)
    local = changed.index(name.encode()) - 30
    entry = changed.rindex(name.encode()) - 46
    for start in (local + field, entry + field + 2):
        changed[start : start + len(value)] = value
    return written(path, bytes(changed))


METHOD, FLAGS, CRC = 8, 6, 14  # in a local header (APPNOTE.TXT 4.3.7)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (CRC, b"\0\1\2\3", "damaged in the zip: Bad CRC-32"),
        (METHOD, b"\x63\0", "can't be unpacked: That compression method is not supported"),
        (METHOD, b"\x0c\0", "damaged in the zip: Invalid data stream"),  # bzip2, which it isn't
        (METHOD, b"\x0e\0", "damaged in the zip: "),  # LZMA
        (FLAGS, b"\x20\0", "can't be unpacked: compressed patched data"),
        (FLAGS, b"\x40\0", "can't be unpacked: strong encryption"),
    ],
)
def test_a_member_that_cannot_be_unpacked_goes_to_quarantine_with_the_reason(
    tmp_path: Path, field: int, value: bytes, reason: str
) -> None:
    files = tree_files(make_tree(tmp_path / "t"))
    data = make_zip(tmp_path / "a.zip", files).read_bytes()
    index = opened(patched(tmp_path / "bad.zip", data, "train/bee/002.jpg", field, value), tmp_path)
    assert [each.key for each in index.unusable] == ["train/bee/002.jpg"]
    assert index.unusable[0].reason.startswith(reason)
    assert index.num_labelled == len(files)


def test_a_zip64_is_read(tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "t"))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            for name, data in files.items():
                with archive.open(name, "w", force_zip64=True) as member:
                    member.write(data)
        assert rows_of(opened(tmp_path / "a.zip", tmp_path)) == rows_of(opened(tmp_path / "t", tmp_path))


def test_names_in_a_zip_that_are_not_utf8(tmp_path: Path) -> None:
    """Without the flag for UTF-8 they are read as cp437, and kept; with it the zip is damaged."""
    data = make_zip(tmp_path / "a.zip", tree_files(make_tree(tmp_path / "t"))).read_bytes()
    other = data.replace(b"train/bee/002.jpg", b"train/bee/\xff02.jpg")
    index = opened(written(tmp_path / "cp437.zip", other), tmp_path)
    assert "train/bee/\xa002.jpg" in index.splits["train"]["key"].to_pylist()
    place = patched(tmp_path / "utf8.zip", data, "train/bee/002.jpg", FLAGS, b"\0\x08")
    written(place, place.read_bytes().replace(b"train/bee/002.jpg", b"train/bee/\xff02.jpg"))
    with pytest.raises(SourceError, match=r"utf8\.zip: the zip is truncated or damaged .*utf-8"):
        opened(place, tmp_path)


def test_a_zip_in_a_folder_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    files = tree_files(make_tree(tmp_path / "t"))
    (tmp_path / "photos").mkdir()
    data = make_zip(tmp_path / "photos" / "all.zip", files).read_bytes()
    assert rows_of(opened(tmp_path / "photos", tmp_path)) == rows_of(opened(tmp_path / "t", tmp_path))
    written(tmp_path / "photos" / "all.zip", data[:-40])
    with pytest.raises(SourceError, match=r"photos: all\.zip: the zip is truncated or damaged"):
        opened(tmp_path / "photos", tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.booleans(),
    st.floats(0.5, 1),
)
def test_any_damage_of_a_zip_is_one_line_or_members_by_name(
    tmp_path_factory: pytest.TempPathFactory, method: int, changes: list[tuple[float, int]], ends: bool, kept: float
) -> None:
    """ends: whether the changed bytes lie in the directory, where they do most harm. kept: the share that isn't cut."""
    root = tmp_path_factory.mktemp("zips")
    images = {f"train/{name}/{n}.jpg": jpeg(n) for name in ("ant", "bee") for n in range(2)}
    data = bytearray(make_zip(root / "a.zip", images, method).read_bytes())
    first = data.index(b"PK\x01\x02") if ends else 0
    for share, value in changes:
        data[first + int(share * (len(data) - first))] = value
    cut = bytes(data[: len(data) if kept > 0.75 else int(len(data) * kept)])
    place = Place("a.zip", str(written(root / "b.zip", cut)), 0, len(cut))
    with contextlib.suppress(SourceError):
        for member in zips.scan(place, str(root / "spool" / "unpacked"), silent):
            assert member.damage or 0 <= member.length <= 10 * len(data)
