import gzip
import io
import lzma
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import PipelineError, SourceError
from pipeline.ingestion.sources import Index, Source, digits, open_source
from pipeline.ingestion.sources.cifar import CLASSES
from tests.support.pictures.images import jpeg, make_tar, make_tree, sample_bytes, shared, tree_files


def open_here(path: Path, tmp_path: Path, layout: str = "auto", md5: str | None = None) -> Index:
    return open_source(Source(str(path), layout, md5), spool=str(tmp_path / "spool"))


# --- class folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["folder", "tar", "tar in a parent folder", "tar.gz", "tar.xz", "misnamed"])
def test_every_packing_of_a_tree_gives_the_same_rows(tmp_path: Path, packing: str) -> None:
    tree = make_tree(tmp_path / "tree")
    files = tree_files(tree)
    source = tmp_path / "source.tar"
    if packing == "folder":
        source = tree
    elif packing == "tar in a parent folder":
        make_tar(source, {f"./data/{name}": data for name, data in files.items()})
    else:
        make_tar(source, files)
    if packing == "tar.gz":
        source = tmp_path / "source.tar.gz"
        source.write_bytes(gzip.compress((tmp_path / "source.tar").read_bytes()))
    if packing in ("tar.xz", "misnamed"):
        source = tmp_path / ("source.tar.xz" if packing == "tar.xz" else "source.tar.gz")
        source.write_bytes(lzma.compress((tmp_path / "source.tar").read_bytes()))

    index = open_here(source, tmp_path)
    assert index.classes == ("ant", "bee", "cow")
    assert {split: table.num_rows for split, table in index.splits.items()} == {"train": 18, "val": 18}
    for table in index.splits.values():
        keys = table["key"].to_pylist()
        assert keys == sorted(keys)
        assert sample_bytes(table) == [files[key] for key in keys]
        assert [index.classes[label] for label in table["label"].to_pylist()] == [key.split("/")[1] for key in keys]


def test_a_lone_test_split_is_the_evaluation_split(tmp_path: Path) -> None:
    assert set(open_here(make_tree(tmp_path / "t", splits=("train", "test")), tmp_path).splits) == {"train", "val"}


def test_a_third_split_is_kept(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", splits=("train", "validation", "test"))
    assert set(open_here(tree, tmp_path).splits) == {"train", "val", "test"}


def test_a_share_of_val_is_set_aside_as_test_and_stays_there_as_the_source_grows(tmp_path: Path) -> None:
    def keys(per_class: int) -> dict[str, set[str]]:
        tree = make_tree(tmp_path / str(per_class), per_class=per_class, splits=("train", "val"))
        index = open_source(Source(str(tree), test_share=0.3), spool=str(tmp_path))
        assert index.notes[-1].startswith(f"test: {index.splits['test'].num_rows} of the {3 * per_class} images of val")
        return {split: set(table["key"].to_pylist()) for split, table in index.splits.items()}

    few, many = keys(15), keys(30)
    for found, number in ((few, 45), (many, 90)):
        assert not found["test"] & found["val"]
        assert len(found["test"] | found["val"]) == number
        assert len({key.split("/")[-2] for key in found["test"]}) == 3
        assert 0.15 < len(found["test"]) / number < 0.45
    assert few["test"] <= many["test"]
    assert few["val"] <= many["val"]


def test_a_share_of_the_val_that_ingest_has_held_out_is_set_aside_by_other_draws(tmp_path: Path) -> None:
    """Drawn by the same numbers, all of val would lie below the share."""
    tree = make_tree(tmp_path / "t", per_class=60, splits=("train",))
    index = open_source(Source(str(tree), val_share=0.5, test_share=0.3), spool=str(tmp_path))
    plain = open_source(Source(str(tree), val_share=0.5), spool=str(tmp_path))
    keys = {split: set(table["key"].to_pylist()) for split, table in index.splits.items()}
    assert keys["train"] == set(plain.splits["train"]["key"].to_pylist())
    assert keys["val"] | keys["test"] == set(plain.splits["val"]["key"].to_pylist())
    assert 0.15 < len(keys["test"]) / plain.splits["val"].num_rows < 0.45


def test_a_test_split_of_the_source_is_left_as_it_is(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", splits=("train", "val", "test"))
    plain = open_here(tree, tmp_path)
    assert open_source(Source(str(tree), test_share=0.3), spool=str(tmp_path)) == plain
    assert open_source(Source(str(tree), test_share=0.0), spool=str(tmp_path)) == plain


def test_a_test_split_that_cannot_be_set_aside_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", per_class=1, splits=("train", "val"))
    with pytest.raises(SourceError, match="no class has two images in val"):
        open_source(Source(str(tree), test_share=0.3), spool=str(tmp_path))
    with pytest.raises(PipelineError, match="test_share=1"):
        Source("x", test_share=1.0)


@pytest.mark.parametrize("below", ["", "train"])
def test_without_val_about_a_tenth_of_every_class_is_held_out(tmp_path: Path, below: str) -> None:
    tree = make_tree(tmp_path / "t", per_class=20, splits=("train",))
    index = open_here(tree / below, tmp_path)
    assert np.bincount(index.splits["val"]["label"].to_numpy()).tolist() == [2, 3, 2]
    assert index.val_share == 0.1
    assert index.notes == (
        "no val split: 7 of 60 images are held out as val, 0.1 of each class by a hash of their keys (--val-share)",
    )
    keys = [set(table["key"].to_pylist()) for table in index.splits.values()]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 60


def test_images_that_can_not_be_read_are_not_among_those_held_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", per_class=20, splits=("train",))
    links = [tree / "train" / "ant" / f"gone{number}.jpg" for number in range(40)]
    for link in links:
        link.symlink_to("/nowhere.jpg")
    index = open_here(tree, tmp_path)
    assert index.notes[0].startswith(f"no val split: {index.splits['val'].num_rows} of 60 images are held out as val")


def test_class_names_that_differ_in_form_or_case_are_recognised(tmp_path: Path) -> None:
    accented = {f"train/{name}/{n}.jpg": jpeg(n) for name in ("caf\u00e9", "bee") for n in range(2)}
    decomposed = {f"val/{name}/{n}.jpg": jpeg(n) for name in ("cafe\u0301", "bee") for n in range(2)}
    assert open_here(make_tar(tmp_path / "a.tar", accented | decomposed), tmp_path).classes == ("bee", "caf\u00e9")
    cases = {f"{name}/{n}.jpg": jpeg(n) for name in ("train/Ant", "train/Bee", "val/ant") for n in range(2)}
    with pytest.raises(SourceError, match=r"class 'ant' has no training image; is it 'Ant'\? Rename one of them"):
        open_here(make_tar(tmp_path / "b.tar", cases), tmp_path)


def test_a_class_of_one_image_stays_in_train(tmp_path: Path) -> None:
    members = {f"{name}/{n}.jpg": jpeg(n) for name in ("ant", "bee") for n in range(4)} | {"cow/0.jpg": jpeg(9)}
    index = open_here(make_tar(tmp_path / "a.tar", members), tmp_path)
    assert 2 not in index.splits["val"]["label"].to_pylist()
    assert index.notes[1] == "one image, which stays in train, in 1 of the classes: cow"
    with pytest.raises(SourceError, match="every class has one image"):
        open_here(make_tar(tmp_path / "b.tar", {"ant/1.jpg": jpeg(1), "bee/1.jpg": jpeg(2)}), tmp_path)


def test_an_evaluation_takes_every_image_of_a_source_without_val(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", splits=("train",))
    index = open_source(Source(str(tree), for_evaluation=True), spool="")
    assert {split: table.num_rows for split, table in index.splits.items()} == {"val": 18}


@pytest.mark.parametrize("share", [0, 1, -0.1, 10])
def test_a_share_for_val_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(PipelineError, match=f"val_share={share} must lie above 0 and below 1"):
        Source("photos", val_share=share)


def test_files_that_are_not_images_are_counted(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t")
    (tree / "README.txt").write_text("hello")
    (tree / "train" / "ant" / "._000.jpg").write_text("macOS")
    assert open_here(tree, tmp_path).num_ignored == 2


def remove_class(tree: Path) -> None:
    for path in (tree / "train" / "bee").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: [path.unlink() for path in tree.rglob("*.jpg")], "holds no file"),
        (lambda tree: [path.rename(path.with_suffix(".txt")) for path in tree.rglob("*.jpg")], r"36 x \.txt"),
        (remove_class, "class 'bee' has no training image"),
        (lambda tree: [jpg.rename(tree / jpg.name) for jpg in (tree / "train" / "ant").iterdir()],
         "6 images of the source aren't in a class folder"),
        (lambda tree: shutil.copytree(tree / "train", tree / "other"), "none of the splits"),
        (lambda tree: (tree / "train").rename(tree / "valid"), "no train split"),
    ],
)  # fmt: skip
def test_a_tree_that_is_not_of_class_folders_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    tree = make_tree(tmp_path / "t")
    damage(tree)
    with pytest.raises(SourceError, match=message):
        open_here(tree, tmp_path)


def test_a_source_of_one_class_is_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"train/ant/1.jpg": jpeg(0), "val/ant/1.jpg": jpeg(1)})
    with pytest.raises(SourceError, match="one class only"):
        open_here(tmp_path / "a.tar", tmp_path)


# --- archives ----------------------------------------------------------------------------------------------------


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothere: no such file or directory"):
        open_here(tmp_path / "nothere", tmp_path)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello world" * 100)
    with pytest.raises(SourceError, match=r"neither a folder nor an archive .* begins with b'hello"):
        open_here(tmp_path / "x.tar", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("share", [0.3, 0.9, "between members", "end mark"])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, share: float | str) -> None:
    plain = make_tar(tmp_path / "a.tar", tree_files(make_tree(tmp_path / "t"))).read_bytes()
    if share == "end mark":
        cut = plain.rstrip(b"\0")
        plain = cut + b"\0" * (-len(cut) % 512)
    if share == "between members":
        with tarfile.open(tmp_path / "a.tar") as tar:
            plain = plain[: tar.getmembers()[20].offset]
    data = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](plain)
    data = data[: int(len(data) * share)] if isinstance(share, float) else data
    (tmp_path / f"cut.tar{suffix}").write_bytes(data)
    with pytest.raises(SourceError, match="truncated"):
        open_here(tmp_path / f"cut.tar{suffix}", tmp_path)


@pytest.mark.parametrize("name", ["../evil.jpg", "train/../../evil.jpg", "/etc/evil.jpg"])
def test_a_member_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    make_tar(tmp_path / "a.tar", {name: jpeg(0)})
    with pytest.raises(SourceError, match="points outside the archive"):
        open_here(tmp_path / "a.tar", tmp_path)


def test_links_in_a_tar_lead_to_its_members_and_to_nothing_else(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{n}.jpg": jpeg(n) for split in ("train", "val") for name in ("ant", "bee") for n in (1, 2)
    }
    make_tar(tmp_path / "a.tar", files)
    links = [
        ("train/ant/hard.jpg", tarfile.LNKTYPE, "train/bee/1.jpg"),
        ("train/ant/soft.jpg", tarfile.SYMTYPE, "../bee/2.jpg"),
        ("train/ant/twice.jpg", tarfile.SYMTYPE, "soft.jpg"),
        ("train/ant/out.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("train/ant/circle.jpg", tarfile.SYMTYPE, "circle.jpg"),
        ("val/bee/device.jpg", tarfile.CHRTYPE, ""),
    ]
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    index = open_here(tmp_path / "a.tar", tmp_path)
    train = dict(zip(index.splits["train"]["key"].to_pylist(), sample_bytes(index.splits["train"]), strict=True))
    assert [train[f"train/ant/{name}.jpg"] for name in ("hard", "soft", "twice")] == [jpeg(1), jpeg(2), jpeg(2)]
    assert {each.key: each.reason for each in index.unusable} == {
        "train/ant/circle.jpg": "dangling link: train/ant/circle.jpg is not in the archive",
        "train/ant/out.jpg": "dangling link: /etc/passwd is not in the archive",
        "val/bee/device.jpg": "not a file: a pipe or device",
    }
    assert (index.num_rows, index.num_labelled) == (11, 14)


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def cifar_rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (30, 3072), dtype=np.uint8), np.arange(30) % 10


def binary_archive(path: Path) -> Path:
    pixels, labels = cifar_rows()
    records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
    files = {
        "cifar-10-batches-bin/data_batch_1.bin": records[:20].tobytes(),
        "cifar-10-batches-bin/test_batch.bin": records[20:].tobytes(),
        "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
    }
    return make_tar(path, files, "w:gz")


def python_archive(path: Path, dump: Callable[[Any], bytes], **first: Any) -> Path:
    pixels, labels = cifar_rows()
    batches = {
        "data_batch_1": {b"data": pixels[:20], b"labels": labels[:20].tolist(), **first},
        "test_batch": {b"data": pixels[20:], b"labels": labels[20:].tolist()},
    }
    files = {f"cifar-10-batches-py/{name}": dump(batch) for name, batch in batches.items()}
    return make_tar(path, files | {"cifar-10-batches-py/batches.meta": b""}, "w:gz")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_both_cifar_archives_give_the_same_rows(tmp_path: Path, protocol: int) -> None:
    binary = open_here(binary_archive(tmp_path / "c.tar.gz"), tmp_path / "1", md5="any")
    archive = python_archive(tmp_path / "p.tar.gz", lambda batch: pickle.dumps(batch, protocol))
    python = open_here(archive, tmp_path / "2", md5="any")
    pixels, labels = cifar_rows()
    for index in (binary, python):
        assert index.classes == CLASSES
        train = index.splits["train"]
        assert train["key"].to_pylist() == [f"data_batch_1/{row:05d}" for row in range(20)]
        assert train["label"].to_pylist() == labels[:20].tolist()
        assert sample_bytes(train) == [row.tobytes() for row in pixels[:20]]
        assert sample_bytes(index.splits["val"]) == [row.tobytes() for row in pixels[20:]]


def test_a_wrong_md5_is_refused_with_both_sums(tmp_path: Path) -> None:
    archive = binary_archive(tmp_path / "c.tar.gz")
    with pytest.raises(
        SourceError, match=r"md5 is \w{32}, the published archive's is c32a1d4ab5d03f1284b67883e8d87530"
    ):
        open_here(archive, tmp_path)
    with pytest.raises(SourceError, match="the published archive's is 0000"):
        open_here(archive, tmp_path, md5="0000")


class Hostile:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


class HostileEncode:
    """Reaches for a codec of its own through the one codec function that numpy needs."""

    def __reduce__(self) -> tuple[Any, ...]:
        import _codecs

        return _codecs.encode, ("x", "zlib")


@pytest.mark.parametrize("bait", [Hostile(), HostileEncode(), np.random.default_rng(0), pickle.Unpickler, eval])
def test_a_pickle_that_names_anything_but_arrays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bait: object
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = python_archive(tmp_path / "p.tar.gz", lambda batch: pickle.dumps(batch, 2), bait=bait)
    with pytest.raises(SourceError, match="the pickle is refused"):
        open_here(archive, tmp_path, md5="any")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "no dictionary"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, "'data' is not uint8"),
        ({b"data": np.zeros((2, 10), np.uint8), b"labels": [0, 1]}, "'data' is not uint8"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "'labels' is not a list of 2"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "'labels' is not a list of 2"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path: Path, batch: Any, message: str) -> None:
    files = {f"cifar-10-batches-py/{name}": pickle.dumps(batch) for name in ("data_batch_1", "test_batch")}
    make_tar(tmp_path / "p.tar.gz", files, "w:gz")
    with pytest.raises(SourceError, match=message):
        open_here(tmp_path / "p.tar.gz", tmp_path, md5="any")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\0" * 5000, "no whole number of 3073-byte records"), (b"\x0b" + b"\0" * 3072, "label 11 is not below 10")],
)
def test_damaged_binary_batches_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    make_tar(tmp_path / "c.tar", {"data_batch_1.bin": data, "test_batch.bin": data})
    with pytest.raises(SourceError, match=message):
        open_here(tmp_path / "c.tar", tmp_path)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_an_unknown_layout_lists_the_files_found_and_the_known_layouts(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", {"a/notes.csv": b"1", "b.bin": b"2", "c.csv": b"3"})
    with pytest.raises(SourceError) as caught:
        open_here(tmp_path / "x.tar", tmp_path)
    for part in ("found 3 files", "2 x .csv", "'a/notes.csv'", "a folder of its own", "labels.csv", "cifar-binary"):
        assert part in str(caught.value)


def test_an_unknown_name_of_a_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="layout 'foldrs' is unknown"):
        open_here(tmp_path, tmp_path, layout="foldrs")


def test_the_digits_are_1797_and_never_called_cifar(tmp_path: Path) -> None:
    index = digits.build_index(str(tmp_path))
    assert index.num_rows == 1797
    assert index.name == "digits-not-cifar10"
    assert index.splits["val"].num_rows == 359
    image = np.frombuffer(sample_bytes(index.splits["train"])[0], np.uint8)
    assert image.shape == (3072,)


def test_the_real_cifar10_jpegs_are_indexed(tmp_path: Path) -> None:
    index = open_here(Path(shared("cifar10-jpeg.tar.xz")), tmp_path)
    assert index.classes == CLASSES
    assert {split: table.num_rows for split, table in index.splits.items()} == {"train": 50_000, "val": 10_000}
    assert np.bincount(index.splits["train"]["label"].to_numpy()).tolist() == [5000] * 10
    first = sample_bytes(index.splits["val"].slice(0, 1))[0]
    with io.BytesIO(first) as stream:
        assert stream.read(2) == b"\xff\xd8"


def test_a_source_none_of_whose_images_can_be_read_is_one_line_with_the_first(tmp_path: Path) -> None:
    for name in ("ant/1.jpg", "bee/1.jpg"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / name).symlink_to("/nowhere.jpg")
    with pytest.raises(SourceError, match=r"none of 2 images can be read \(ant/1.jpg: dangling link: /nowhere.jpg"):
        open_here(tmp_path / "tree", tmp_path)
