"""CIFAR-100 and Tiny ImageNet as they are published, in folders and archives."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Index, Source, open_source
from tests.support.pictures.images import jpeg, make_tar, rows_of, sample_bytes, write_tree

# --- CIFAR-100 ---------------------------------------------------------------------------------------------------

FINE = [f"fine{number:02d}" for number in range(100)]
PIXELS = np.random.default_rng(0).integers(0, 256, (300, 3072), dtype=np.uint8)
LABELS = np.random.default_rng(1).permutation(np.arange(300) % 100)


def binary_files() -> dict[str, bytes]:
    coarse = (LABELS // 5).astype(np.uint8)
    records = np.concatenate([coarse[:, None], LABELS[:, None].astype(np.uint8), PIXELS], axis=1)
    return {
        "cifar-100-binary/train.bin": records[:200].tobytes(),
        "cifar-100-binary/test.bin": records[200:].tobytes(),
        "cifar-100-binary/fine_label_names.txt": "\n".join([*FINE, ""]).encode(),
        "cifar-100-binary/coarse_label_names.txt": b"a\nb\n",
    }


def python_files(**changes: Any) -> dict[str, bytes]:
    batches = {
        name: {b"data": PIXELS[part], b"fine_labels": LABELS[part].tolist(), b"coarse_labels": [0] * len(LABELS[part])}
        for name, part in (("train", slice(200)), ("test", slice(200, 300)))
    }
    batches["meta"] = {b"fine_label_names": [name.encode() for name in FINE], b"coarse_label_names": []}
    batches["train"].update({key.encode(): value for key, value in changes.items()})
    return {f"cifar-100-python/{name}": pickle.dumps(batch, 2) for name, batch in batches.items()}


def opened(path: Path, tmp_path: Path, md5: str | None = None) -> Index:
    return open_source(Source(str(path), md5=md5), spool=str(tmp_path / "spool"))


@pytest.mark.parametrize("files", [binary_files(), python_files()], ids=["binary", "python"])
@pytest.mark.parametrize("packing", ["tar.gz", "folder"])
def test_both_archives_of_cifar100_give_the_fine_labels(tmp_path: Path, files: dict[str, bytes], packing: str) -> None:
    if packing == "tar.gz":
        path, md5 = make_tar(tmp_path / "c.tar.gz", files, "w:gz"), "any"
    else:
        path, md5 = write_tree(tmp_path / "c", files), None
    index = opened(path, tmp_path, md5)
    assert index.classes == tuple(FINE)
    for split, batch, part in (("train", "train", slice(200)), ("val", "test", slice(200, 300))):
        table = index.splits[split]
        assert table["key"].to_pylist() == [f"{batch}/{number:05d}" for number in range(table.num_rows)]
        assert table["label"].to_pylist() == LABELS[part].tolist()
        assert sample_bytes(table) == [row.tobytes() for row in PIXELS[part]]


@pytest.mark.parametrize(
    ("files", "md5"),
    [(binary_files(), "03b5dce01913d631647c71ecec9e9cb8"), (python_files(), "eb9058c3a382ffc7106e4002c42a8d85")],
)
def test_another_md5_than_the_published_one_is_refused(tmp_path: Path, files: dict[str, bytes], md5: str) -> None:
    with pytest.raises(SourceError, match=f"the published archive's is {md5}"):
        opened(make_tar(tmp_path / "c.tar.gz", files, "w:gz"), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**binary_files(), "cifar-100-binary/train.bin": b"\0" * 3075}, "no whole number of 3074-byte records"),
        ({**binary_files(), "cifar-100-binary/train.bin": b"\x01\x64" + bytes(3072)}, "label 100 is not below 100"),
        ({**binary_files(), "cifar-100-binary/fine_label_names.txt": b"a b"}, "2 names of fine labels"),
        ({n: d for n, d in binary_files().items() if "test.bin" not in n}, "lacks its test batch"),
        (python_files(fine_labels=[100] * 200), "'fine_labels' is not a list of 200 classes in 0..99"),
        (python_files(data=np.zeros((200, 3))), "'data' is not uint8"),
        (python_files(batch_label=np.random.default_rng), "the pickle is refused"),
    ],
)
def test_damaged_archives_of_cifar100_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        opened(make_tar(tmp_path / "c.tar", files), tmp_path)


# --- Tiny ImageNet -----------------------------------------------------------------------------------------------

WNIDS = ("n01443537", "n01629819", "n02124075")
VAL = {f"val_{number}.JPEG": WNIDS[number % 3] for number in range(6)}


def tiny_files() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for label, wnid in enumerate(WNIDS):
        files |= {f"train/{wnid}/images/{wnid}_{n}.JPEG": jpeg(10 * label + n) for n in range(4)}
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x 0 0 1 1"
    files |= {f"val/images/{name}": jpeg(100 + n) for n, name in enumerate(VAL)}
    files["val/val_annotations.txt"] = "".join(
        f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in VAL.items()
    ).encode()
    files |= {f"test/images/test_{number}.JPEG": jpeg(200 + number) for number in range(3)}
    return files | {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01443537\tgoldfish\n"}


def as_class_folders() -> dict[str, bytes]:
    files = {
        name.replace("images/", ""): d
        for name, d in tiny_files().items()
        if name.startswith("train/") and "JPEG" in name
    }
    return files | {f"val/{wnid}/{name}": jpeg(100 + n) for n, (name, wnid) in enumerate(VAL.items())}


@pytest.mark.parametrize("below", ["", "tiny-imagenet-200/", "data/tiny-imagenet-200/"])
@pytest.mark.parametrize("packing", ["folder", "tar"])
def test_tiny_imagenet_has_the_rows_of_class_folders(tmp_path: Path, below: str, packing: str) -> None:
    files = {below + name: data for name, data in tiny_files().items()}
    path = write_tree(tmp_path / "t", files) if packing == "folder" else make_tar(tmp_path / "t.tar", files)
    index = opened(path, tmp_path)
    assert index.layout == "tiny-imagenet"
    assert rows_of(index) == rows_of(opened(write_tree(tmp_path / "f", as_class_folders()), tmp_path))
    assert index.ignored["images of test without labels"] == 3
    assert index.num_found == len(files)


def test_validation_images_sorted_into_folders_are_read_too(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "t", tiny_files())
    for name, wnid in VAL.items():
        (root / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val/images" / name, root / "val" / wnid / "images" / name)
    assert rows_of(opened(root, tmp_path)) == rows_of(opened(write_tree(tmp_path / "f", as_class_folders()), tmp_path))


def test_validation_images_and_lines_without_each_other_are_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "t", tiny_files())
    (root / "val/images/val_9.JPEG").write_bytes(jpeg(9))
    (root / "val/images/val_0.JPEG").unlink()
    index = opened(root, tmp_path)
    assert [(each.key, each.label, each.reason) for each in index.unusable] == [
        ("val/val_9.JPEG", -1, "no label: val/val_annotations.txt has no line for it"),
        (f"val/{WNIDS[0]}/val_0.JPEG", 0, "missing: val/val_annotations.txt names it"),
    ]
    assert index.splits["val"].num_rows == 5


def test_annotations_without_labels_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "t", tiny_files())
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(SourceError, match=r"'val_0\.JPEG' has no WNID"):
        opened(root, tmp_path)
