"""ImageNet as it is handed out, and WebDataset: the same keys and labels as class folders of the same images."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Index, Source, open_source
from tests.support.pictures.images import jpeg, make_tar, sample_bytes, webdataset, write_tree

WNIDS = ("n01440764", "n01443537", "n02102040")
# As in the real devkit, an ILSVRC2012_ID is not the rank of its WNID, and synsets with children aren't classes.
SYNSET_IDS = {2: "n01440764", 3: "n01443537", 1: "n02102040"}
TRAIN = {f"{wnid}/{wnid}_{n}.JPEG": jpeg(100 * w + n) for w, wnid in enumerate(WNIDS) for n in range(4)}
VAL_IDS = [3, 1, 2, 2, 1, 3]
VAL = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": jpeg(900 + n) for n in range(6)}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def devkit(ids: list[int] = VAL_IDS) -> bytes:
    rows = [(number, wnid, 0) for number, wnid in SYNSET_IDS.items()] + [(4, "n00001740", 3)]
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, dtype=kind)})
    root = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{root}/meta.mat": mat.getvalue(),
        f"{root}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{number}\n" for number in ids).encode(),
    }
    return gzip.compress(tar_bytes(files))


def official(root: Path) -> Path:
    root.mkdir(parents=True)
    inner = {f"{wnid}.tar": tar_bytes({k.split("/")[1]: v for k, v in TRAIN.items() if wnid in k}) for wnid in WNIDS}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(VAL))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    return root


def val_by_wnid() -> dict[str, bytes]:
    return {f"{SYNSET_IDS[n]}/{name}": data for (name, data), n in zip(VAL.items(), VAL_IDS, strict=True)}


def folders(root: Path) -> Path:
    return write_tree(
        root, {f"train/{n}": d for n, d in TRAIN.items()} | {f"val/{n}": d for n, d in val_by_wnid().items()}
    )


def kaggle(root: Path) -> Path:
    below = "ILSVRC/Data/CLS-LOC"
    solution = ["ImageId,PredictionString"]
    solution += [
        f"{name[:-5]},{SYNSET_IDS[n]} 1 2 30 40 {SYNSET_IDS[n]} 5 6 7 8" for name, n in zip(VAL, VAL_IDS, strict=True)
    ]
    return write_tree(
        root,
        {f"{below}/train/{n}": d for n, d in TRAIN.items()}
        | {f"{below}/val/{n}": d for n, d in VAL.items()}
        | {f"{below}/test/ILSVRC2012_test_{n:08d}.JPEG": jpeg(n) for n in range(3)}
        | {"LOC_val_solution.csv": "\n".join(solution).encode(), "LOC_synset_mapping.txt": b"n01440764 tench\n"},
    )


def opened(path: Path, tmp_path: Path) -> Index:
    return open_source(str(path), spool=str(tmp_path / "spool"))


def rows(index: Index) -> dict[str, list[tuple[str, str, bytes]]]:
    found = {}
    for split, table in index.splits.items():
        labels = [index.classes[label] for label in table["label"].to_pylist()]
        found[split] = list(zip(table["key"].to_pylist(), labels, sample_bytes(table), strict=True))
    return found


@pytest.mark.parametrize(("make", "layout"), [(official, "imagenet-archives"), (kaggle, "kaggle")])
def test_imagenet_has_the_same_rows_in_every_layout(tmp_path: Path, make, layout: str) -> None:  # type: ignore[no-untyped-def]
    expected = opened(folders(tmp_path / "folders"), tmp_path)
    index = opened(make(tmp_path / "source"), tmp_path)
    assert (expected.layout, index.layout) == ("folders", layout)
    assert index.classes == expected.classes == WNIDS
    assert rows(index) == rows(expected)
    assert len(rows(index)["val"]) == 6


def test_the_training_archive_alone_is_class_folders_with_a_tenth_held_out(tmp_path: Path) -> None:
    root = official(tmp_path / "source")
    index = opened(root / "ILSVRC2012_img_train.tar", tmp_path)
    assert index.classes == WNIDS
    found = rows(index)
    assert {key: data for split in found.values() for key, _, data in split} == TRAIN
    assert len(found["val"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "ILSVRC2012_img_val.tar").unlink(), "ILSVRC2012_img_val.tar is missing"),
        (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").unlink(), "devkit_t12.tar.gz is missing; the val labels"),
        (
            lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit([1, 2])),
            "6 validation images, but the devkit's ground truth has 2 lines",
        ),
        (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit([9] * 6)), "the devkit is damaged"),
        (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"x"), "the devkit is damaged"),
        (
            lambda root: (root / "ILSVRC2012_img_train.tar").write_bytes(
                (root / "ILSVRC2012_img_train.tar").read_bytes()[:9000]
            ),
            "truncated",
        ),
    ],
)
def test_archives_that_do_not_fit_together_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    root = official(tmp_path / "source")
    change(root)
    with pytest.raises(SourceError, match=message):
        opened(root, tmp_path)


def test_kaggles_validation_images_need_their_labels(tmp_path: Path) -> None:
    root = kaggle(tmp_path / "source")
    text = (root / "LOC_val_solution.csv").read_text().splitlines()
    (root / "LOC_val_solution.csv").write_text("\n".join(text[:-1]))
    with pytest.raises(SourceError, match=r"ILSVRC2012_val_00000006.JPEG' has no label"):
        opened(root, tmp_path)
    (root / "LOC_val_solution.csv").unlink()
    with pytest.raises(SourceError, match=r"LOC_val_solution\.csv is missing"):
        opened(root, tmp_path)


def test_webdataset_shards_are_labelled_by_their_cls_files(tmp_path: Path) -> None:
    index = opened(webdataset(tmp_path / "w"), tmp_path)
    assert index.layout == "webdataset"
    assert index.classes == ("0", "2", "4", "6", "8", "10")  # as numbers, not as words
    found = rows(index)
    assert {split: len(each) for split, each in found.items()} == {"train": 12, "val": 12}
    assert found["train"][0] == ("imagenet-train-000000/0000.jpg", "0", jpeg(0))
    assert found["val"][-1] == ("imagenet-val-000001/0005.jpg", "10", jpeg(155))


def test_webdataset_classes_may_be_names(tmp_path: Path) -> None:
    index = opened(webdataset(tmp_path / "w", "class {}"), tmp_path)
    assert index.classes == tuple(sorted(f"class {n}" for n in range(0, 12, 2)))


def test_a_webdataset_sample_without_a_class_is_named(tmp_path: Path) -> None:
    root = webdataset(tmp_path / "w")
    make_tar(root / "imagenet-train-000002.tar", {"x.jpg": jpeg(0)})
    index = opened(root, tmp_path)
    assert [(each.key, each.split, each.reason) for each in index.unusable] == [
        ("imagenet-train-000002/x.jpg", "train", "no label: no .cls file with one beside it")
    ]


def test_a_forced_layout_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "folders")
    with pytest.raises(SourceError, match="is not of the layout kaggle"):
        open_source(Source(str(root), "kaggle"), spool=str(tmp_path))
