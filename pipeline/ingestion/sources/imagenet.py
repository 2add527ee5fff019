"""ImageNet (ILSVRC2012) as it is distributed: the official archives, and Kaggle's CLS-LOC tree.

Both give the same keys and labels as class folders of the same images: keys are `SPLIT/WNID/NAME.JPEG`, and a label is
the rank of its WNID.
"""

import csv
import io
import re
import tarfile
from typing import Any

import numpy as np

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, labelled_index
from pipeline.ingestion.sources.members import Listing, open_tars
from pipeline.ingestion.sources.recognise.file_kinds import is_image

TRAIN_NAME, VAL_NAME = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = re.compile(r"(?:^|/)ILSVRC2012_devkit_t12\.tar(\.gz)?$")
_KAGGLE = re.compile(r"(?:^|/)Data/CLS-LOC/(train|val)/(.+)$")
_MAX_DEVKIT_BYTES = 64 << 20


def matches_official(listing: Listing) -> bool:
    """Whether the source holds the training archive."""
    return any(_base(name) == TRAIN_NAME for name in listing.names)


def matches_kaggle(listing: Listing) -> bool:
    """Whether the source holds Kaggle's tree."""
    return any("Data/CLS-LOC/" in name for name in listing.names)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _find(listing: Listing, is_wanted: Any, remedy: str) -> int:
    """Returns the index of the first file whose name is wanted. Raises SourceError, with the remedy, for none."""
    for row, name in enumerate(listing.names):
        if is_wanted(name):
            return row
    raise SourceError(f"{listing.uri}: {remedy}")


# --- the official archives ---------------------------------------------------------------------------------------


def build_official_index(listing: Listing, name: str, progress: Progress) -> Index:
    """Returns the index of a folder with the training archive, the validation archive and the devkit.

    The training archive holds a tar for each WNID. Line n of the devkit's ground truth is the ILSVRC2012_ID of the n-th
    validation image by name, and the devkit's meta.mat maps that to a WNID. Raises SourceError if an archive is missing
    or if the numbers of images and lines differ.
    """
    train = _find(listing, lambda each: _base(each) == TRAIN_NAME, f"{TRAIN_NAME} is missing; add it")
    val = _find(listing, lambda each: _base(each) == VAL_NAME, f"{VAL_NAME} is missing; add it")
    devkit = _find(listing, _DEVKIT.search, "ILSVRC2012_devkit_t12.tar.gz is missing; the val labels are in it: add it")
    wnids = _val_wnids(listing.member(devkit).read(), listing.uri)

    by_wnid = open_tars(listing, [train, val], progress=progress)
    train_stem, val_stem = (listing.names[row].removesuffix(".tar") + "/" for row in (train, val))
    inner = [row for row, each in enumerate(by_wnid.names) if each.startswith(train_stem) and each.endswith(".tar")]
    flat = [row for row, each in enumerate(by_wnid.names) if each.startswith(val_stem) and is_image(each)]
    if len(flat) != len(wnids):
        raise SourceError(
            f"{listing.uri}: {len(flat)} validation images, but the devkit's ground truth has {len(wnids)} lines; "
            "download both again"
        )
    trained = open_tars(by_wnid, inner, progress=progress)
    images = [row for row, each in enumerate(trained.names) if is_image(each)]
    train_wnids = [trained.names[row].split("/")[-2] for row in images]
    together = Listing(
        listing.uri,
        [trained.names[row] for row in images] + [by_wnid.names[row] for row in flat],
        [trained.objects[row] for row in images] + [by_wnid.objects[row] for row in flat],
        np.concatenate([trained.offsets[images], by_wnid.offsets[flat]]),
        np.concatenate([trained.lengths[images], by_wnid.lengths[flat]]),
        listing.fingerprint,
    )
    class_names = train_wnids + wnids
    splits = ["train"] * len(images) + ["val"] * len(flat)
    keys = [f"{s}/{w}/{_base(n)}" for s, w, n in zip(splits, class_names, together.names, strict=True)]
    labelled = LabelledFiles(range(len(together)), keys, splits, class_names)
    return labelled_index(together, name, "imagenet-archives", labelled)


def _val_wnids(devkit: bytes, uri: str) -> list[str]:
    """Returns the WNID of each validation image, in the order of the images' names. Raises SourceError."""
    from scipy.io import loadmat

    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(devkit), mode="r:*") as tar:
            for info in tar:
                if info.isfile() and _base(info.name) in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                    stream = tar.extractfile(info)
                    files[_base(info.name)] = stream.read(_MAX_DEVKIT_BYTES) if stream else b""
        synsets = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)["synsets"]
        wnid_of = {
            int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets) if int(s["num_children"]) == 0
        }
        lines = files["ILSVRC2012_validation_ground_truth.txt"].decode().split()
        return [wnid_of[int(line)] for line in lines]
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        raise SourceError(f"{uri}: the devkit is damaged ({error!r}); download it again") from error


# --- Kaggle's tree -----------------------------------------------------------------------------------------------


def build_kaggle_index(listing: Listing, name: str) -> Index:
    """Returns the index of a tree with `Data/CLS-LOC/{train/WNID,val,test}` and `LOC_val_solution.csv`.

    The WNID of a validation image is the first word of its PredictionString. Test images have no labels and are left
    out. Raises SourceError if a training or validation image has no label.
    """
    solution = _find(
        listing, lambda each: _base(each) == "LOC_val_solution.csv", "LOC_val_solution.csv is missing; add it"
    )
    text = listing.member(solution).read().decode()
    wnid_of = {line["ImageId"]: line["PredictionString"].split(" ", 1)[0] for line in csv.DictReader(io.StringIO(text))}
    rows, keys, splits, class_names = [], [], [], []
    for row, each in enumerate(listing.names):
        match = _KAGGLE.search(each)
        if not match or not is_image(each):
            continue
        split, rest = match.groups()
        image_id = _base(rest).rsplit(".", 1)[0]
        wnid = rest.split("/")[0] if split == "train" else wnid_of.get(image_id)
        if wnid is None or (split == "train" and "/" not in rest):
            raise SourceError(f"{listing.uri}: {each!r} has no label in LOC_val_solution.csv or by its folder; add it")
        rows.append(row)
        keys.append(f"{split}/{wnid}/{_base(rest)}")
        splits.append(split)
        class_names.append(wnid)
    return labelled_index(listing, name, "kaggle", LabelledFiles(rows, keys, splits, class_names))
