"""WebDataset in all its forms, and class folders in several archives."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Index, Source, open_source
from tests.support.pictures.images import jpeg, make_tar, picture, rows_of, write_tree

CLASSES = ("ant", "bee", "cow")
SAMPLES = {f"im{n:03d}": (CLASSES[n % 3], jpeg(n)) for n in range(12)}


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def opened(path: Path, tmp_path: Path) -> Index:
    return open_source(Source(str(path)), spool=str(tmp_path / "spool"))


def as_cls(label: str) -> dict[str, bytes]:
    return {".cls": f"{label}\n".encode()}


def as_json(label: str) -> dict[str, bytes]:
    return {".json": json.dumps({"width": 3, "label": label}).encode()}


def samples(sidecar: Callable[[str], dict[str, bytes]] = as_cls, suffix: str = ".jpg") -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for stem, (label, data) in SAMPLES.items():
        files[stem + suffix] = data
        files |= {stem + each: content for each, content in sidecar(label).items()}
    return files


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def labels(index: Index) -> dict[str, str]:
    """Returns {base name: class} of all rows, and checks their bytes."""
    rows = [row for each in rows_of(index).values() for row in each]
    for key, _, data in rows:
        assert data == SAMPLES[key.split("/")[-1].split(".")[0]][1]
    return {key.split("/")[-1].split(".")[0]: name for key, name, _ in rows}


EXPECTED = {stem: label for stem, (label, _) in SAMPLES.items()}


@pytest.mark.parametrize("sidecar", [as_cls, as_json])
@pytest.mark.parametrize("packing", ["shard.tar", "shard.zip", "unpacked", "folder of one tar"])
def test_a_single_shard_is_read(tmp_path: Path, packing: str, sidecar: Callable[[str], dict[str, bytes]]) -> None:
    files = samples(sidecar)
    path = tmp_path / packing
    if packing.endswith(".tar"):
        make_tar(path, files)
    elif packing.endswith(".zip"):
        zip_of(path, files)
    elif packing == "unpacked":
        write_tree(path, files)
    else:
        path.mkdir()
        make_tar(path / "shard-000.tar", files)
    index = opened(path, tmp_path)
    assert index.layout in ("webdataset", "archives") or packing == "folder of one tar"
    assert labels(index) == EXPECTED
    assert index.num_labelled == 12


@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".webp", ".JPG"])
def test_images_of_a_shard_may_have_any_suffix(tmp_path: Path, suffix: str) -> None:
    assert labels(opened(make_tar(tmp_path / "s.tar", samples(suffix=suffix)), tmp_path)) == EXPECTED


def test_a_dot_in_a_name_does_not_hide_its_label(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for stem, (label, data) in SAMPLES.items():
        files |= {f"{stem}.v1.5.jpg": data, f"{stem}.v1.5.cls": label.encode()}
    assert labels(opened(make_tar(tmp_path / "s.tar", files), tmp_path)) == EXPECTED


def test_samples_without_a_label_are_refused_by_name(tmp_path: Path) -> None:
    files = {**samples(), "lost.jpg": jpeg(50), "blank.jpg": jpeg(51), "blank.cls": b" \n"}
    index = opened(make_tar(tmp_path / "s.tar", files), tmp_path)
    assert labels(index) == EXPECTED
    assert [(each.key, each.label) for each in index.unusable] == [("blank.jpg", -1), ("lost.jpg", -1)]
    assert {each.reason for each in index.unusable} == {"no label: no .cls file with one beside it"}
    assert index.num_found == len(files)


def test_json_files_beside_images_in_class_folders_are_no_labels(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for stem, (label, data) in SAMPLES.items():
        files |= {f"{label}/{stem}.jpg": data, f"{label}/{stem}.json": b'{"label": "wrong"}'}
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    assert index.layout == "folders"
    assert labels(index) == EXPECTED


@pytest.mark.parametrize(
    "names", [("s-0.tar", "s-1.tar"), ("00000.tar", "00001.tar", "00002.tar"), ("train-000000.tar", "train-000001.tar")]
)
@pytest.mark.parametrize("sidecar", [as_cls, as_json])
def test_numbered_shards_are_no_classes(
    tmp_path: Path, names: tuple[str, ...], sidecar: Callable[[str], dict[str, bytes]]
) -> None:
    (tmp_path / "s").mkdir()
    files = sorted(samples(sidecar).items())  # two files for each sample
    size = len(files) // len(names)
    for number, name in enumerate(names):
        make_tar(tmp_path / "s" / name, dict(files[number * size : (number + 1) * size]))
    index = opened(tmp_path / "s", tmp_path)
    assert labels(index) == EXPECTED
    assert index.num_labelled == 12


def test_json_files_in_archives_of_one_class_each_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for label, files in by_class().items():
        beside = {name.replace(".jpg", ".json"): b'{"label": "wrong"}' for name in files}
        make_tar(tmp_path / "s" / f"{label}.tar", {**files, **beside})
    assert labels(opened(tmp_path / "s", tmp_path)) == EXPECTED


def test_shards_without_labels_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    captioned = sorted(samples(lambda label: {".json": b'{"url": "u"}', ".txt": f"a {label}".encode()}).items())
    for number in range(2):
        make_tar(tmp_path / "s" / f"{number:05d}.tar", dict(captioned[number * 18 : (number + 1) * 18]))
    with pytest.raises(SourceError, match=r"12 images of WebDataset shards without a label: .*--layout folders"):
        opened(tmp_path / "s", tmp_path)
    assert open_source(Source(str(tmp_path / "s"), "folders"), spool=str(tmp_path / "p")).classes == ("00000", "00001")


@pytest.mark.parametrize("level", ["last", "first"])
def test_archives_that_can_be_read_in_two_ways_are_read_as_told(tmp_path: Path, level: str) -> None:
    (tmp_path / "s").mkdir()
    for number in range(2):
        below = {f"{c}/{n}": data for c, files in by_class().items() for n, data in sorted(files.items())[number::2]}
        zip_of(tmp_path / "s" / f"part{number}.zip", below)
    with pytest.raises(SourceError, match=r"--layout folders-first \(part0, part1\) or folders-last \(ant, bee, cow\)"):
        opened(tmp_path / "s", tmp_path)
    index = open_source(Source(str(tmp_path / "s"), f"folders-{level}"), spool=str(tmp_path / "p"))
    assert index.classes == (CLASSES if level == "last" else ("part0", "part1"))


def test_a_split_that_is_packed_beside_one_that_is_not_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "s", {f"val/{c}/{n}": d for c, files in by_class().items() for n, d in files.items()})
    make_tar(tmp_path / "s" / "train.tar", {f"{c}/{n}": d for c, files in by_class().items() for n, d in files.items()})
    with pytest.raises(SourceError, match=r"no train split among \['val'\].*; train.tar lies there packed: unpack it"):
        opened(tmp_path / "s", tmp_path)


def by_class(below: str = "") -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for stem, (label, data) in SAMPLES.items():
        found.setdefault(label, {})[f"{below.format(label)}{stem}.jpg"] = data
    return found


@pytest.mark.parametrize("make", [make_tar, zip_of], ids=["tar", "zip"])
@pytest.mark.parametrize("below", ["", "{}/"], ids=["flat", "in a folder of its name"])
def test_one_archive_a_class(tmp_path: Path, make: Callable[..., Path], below: str) -> None:
    suffix = ".tar" if make is make_tar else ".zip"
    (tmp_path / "s").mkdir()
    for label, files in by_class(below).items():
        make(tmp_path / "s" / f"{label}{suffix}", files)
    index = opened(tmp_path / "s", tmp_path)
    like = write_tree(tmp_path / "like", {f"{c}/{n}": d for c, files in by_class().items() for n, d in files.items()})
    assert rows_of(index) == rows_of(opened(like, tmp_path))


@pytest.mark.parametrize("make", [make_tar, zip_of], ids=["tar", "zip"])
@pytest.mark.parametrize("below", ["", "{}/"], ids=["class folders", "in a folder of its name"])
def test_one_archive_a_split(tmp_path: Path, make: Callable[..., Path], below: str) -> None:
    suffix = ".tar" if make is make_tar else ".zip"
    (tmp_path / "s").mkdir()
    tree = {f"{label}/{stem}.jpg": data for stem, (label, data) in SAMPLES.items()}
    for split in ("train", "val"):
        make(tmp_path / "s" / f"{split}{suffix}", {below.format(split) + name: data for name, data in tree.items()})
    like = write_tree(tmp_path / "like", {f"{s}/{n}": d for s in ("train", "val") for n, d in tree.items()})
    assert rows_of(opened(tmp_path / "s", tmp_path)) == rows_of(opened(like, tmp_path))


def test_files_that_systems_leave_beside_shards_are_ignored_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "s"
    (root / "__MACOSX").mkdir(parents=True)
    make_tar(root / "train-0.tar", samples())
    make_tar(root / "val-0.tar", samples())
    (root / "._train-0.tar").write_bytes(b"\0\5\x16\7" + bytes(100))
    (root / ".DS_Store").write_bytes(b"x")
    (root / "__MACOSX/._val-0.tar").write_bytes(b"x")
    (root / "README.md").write_bytes(b"x")
    index = opened(root, tmp_path)
    assert {split: table.num_rows for split, table in index.splits.items()} == {"train": 12, "val": 12}
    assert sum(count for kind, count in index.ignored.items() if kind != ".cls") == 4


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    make_tar(tmp_path / "s/train-0.tar", samples())
    data = make_tar(tmp_path / "x.tar", samples()).read_bytes()
    (tmp_path / "s/train-1.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"train-1\.tar: the archive is truncated"):
        opened(tmp_path / "s", tmp_path)
