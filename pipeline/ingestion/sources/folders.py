"""Class folders: `[.../]SPLIT/CLASS/NAME.jpg`, or `[.../]CLASS/NAME.jpg` without splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.index import Index, hold_out, sample_table
from pipeline.ingestion.sources.members import Listing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HELD_OUT_FRACTION = 0.1
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name. Hidden files, such as the `._x.jpg` of macOS, aren't."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def matches(listing: Listing) -> bool:
    """Whether the source looks like class folders: at least one image in a folder."""
    return any("/" in name and is_image(name) for name in listing.names)


def build_index(listing: Listing, name: str) -> Index:
    """Returns the index of class folders. Raises SourceError if an image isn't in a class folder.

    The label of a class is its rank among the sorted class names, as in ImageNet. A `test` split becomes `val` if there
    is no `val`; of a source without splits a tenth of each class becomes `val`.
    """
    images = [row for row in range(len(listing)) if is_image(listing.names[row])]
    places = [_place(listing.names[row], listing.uri) for row in images]
    found = {split for split, _ in places}
    if len(found) > 1 and None in found:
        stray = next(row for row, (split, _) in zip(images, places, strict=True) if split is None)
        raise SourceError(
            f"{listing.uri}: {listing.names[stray]!r} is in none of the splits {sorted(filter(None, found))}; move it"
        )
    rename = {"test": "val"} if "val" not in found else {}
    keys = [key_of(listing.names[row]) for row in images]
    splits = [rename.get(split or "", split or "") for split, _ in places]
    labelled = LabelledFiles(images, keys, splits, [class_name for _, class_name in places])
    return labelled_index(listing, name, "folders", labelled)


@dataclass(frozen=True)
class LabelledFiles:
    """Files of a listing that are labelled images: columns of equal length."""

    rows: Sequence[int]  # indices in the listing
    keys: Sequence[str]
    splits: Sequence[str]  # "" for all if the source has no splits
    class_names: Sequence[str]


def labelled_index(
    listing: Listing,
    name: str,
    layout: str,
    labelled: LabelledFiles,
    sort_key: Callable[[str], Any] | None = None,
) -> Index:
    """Returns the index of the labelled files of a listing.

    The label of a class is its rank among the class names, sorted by `sort_key`. Of a source without splits a tenth of
    each class is held out for val. Raises SourceError if there is only one class, or if a split or the training images
    of a class are missing.
    """
    classes = tuple(sorted(set(labelled.class_names), key=sort_key))
    if len(classes) < 2:
        raise SourceError(f"{listing.uri}: one class only ({classes[0]!r}); a classifier needs two or more folders")
    label = {class_name: index for index, class_name in enumerate(classes)}
    tables = {}
    for split in sorted(set(labelled.splits)):
        chosen = [position for position, each in enumerate(labelled.splits) if each == split]
        members = np.array([labelled.rows[position] for position in chosen], dtype=np.int64)
        tables[split] = sample_table(
            [labelled.keys[position] for position in chosen],
            [label[labelled.class_names[position]] for position in chosen],
            [listing.objects[row] for row in members],
            listing.offsets[members],
            listing.lengths[members],
        )
    if "" in tables:
        tables = dict(zip(("train", "val"), hold_out(tables[""], HELD_OUT_FRACTION), strict=True))
    for needed in ("train", "val"):
        if needed not in tables:
            raise SourceError(f"{listing.uri}: no {needed} split among {sorted(tables)}; add a {needed}/ folder")
    trained = set(np.unique(tables["train"]["label"].to_numpy()).tolist())
    for class_name, index in label.items():
        if index not in trained:
            raise SourceError(f"{listing.uri}: class {class_name!r} has no training image; add some or remove it")
    return Index(
        name, layout, classes, "file", tables, listing.fingerprint, num_ignored=len(listing) - len(labelled.rows)
    )


def split_of(word: str) -> str | None:
    """Returns the split that a word in the name of a folder or file stands for, or None."""
    return _SPLIT_NAMES.get(word.lower())


def _place(name: str, uri: str) -> tuple[str | None, str]:
    """Returns (split or None, class name) of a file. Raises SourceError if it isn't in a class folder."""
    folders = name.split("/")[:-1]
    if not folders or split_of(folders[-1]):
        raise SourceError(f"{uri}: {name!r} isn't in a class folder; expected SPLIT/CLASS/NAME or CLASS/NAME")
    split = split_of(folders[-2]) if len(folders) > 1 else None
    return split, folders[-1]


def key_of(name: str) -> str:
    """Returns the key of an image, SPLIT/CLASS/NAME or CLASS/NAME: equal for a folder, its tar and its parent's tar."""
    parts = name.split("/")
    return "/".join(parts[-3:] if len(parts) > 2 and split_of(parts[-3]) else parts[-2:])
