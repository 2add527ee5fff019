"""Split words inside longer names: `trainLabels.csv`, `train_images/`, `data/Test-Set`."""

import re
from collections.abc import Collection, Iterable

from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.split_words import UNLABELLED, is_generic, split_name, split_of

# Parts of one folder of images: HAM10000_images_part_1, images_001.
_PART = re.compile(r"(?:part|batch|chunk|shard|images?|imgs?)[ _-]?\d+$", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")


def split_in(path: str) -> str:
    """Returns the split that a word of a path stands for, that of its last part first; "" for none."""
    for part in reversed(path.split("/")):
        found = split_name(part)
        if found and not found.short and found.split != UNLABELLED:
            return found.split
    return ""


def is_class_folder(name: str) -> bool:
    """Whether a folder's name may be a class: no split, as `train_images`, no `images`, no numbered part."""
    return bool(name) and not split_of(name) and not is_generic(name) and not _PART.search(name)


def in_class_folders(listing: Listing, shards: Collection[str] = ()) -> bool:
    """Whether the images lie in two or more folders whose names may be classes, such as `cat` and `dog`.

    shards: paths of folders that are none, since they stand for the archives of a set (`numbered`).
    """
    folders = {listing.names[row].rpartition("/")[0] for row in listing.image_rows}.difference(shards)
    return len(list(filter(is_class_folder, {folder.rpartition("/")[2] for folder in folders}))) > 1


def numbered(names: Iterable[str]) -> set[str]:
    """Returns the names that differ from another in their digits alone, as `data-000` and `data-001` do."""
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault(_DIGITS.sub("#", name), set()).add(name)
    return {name for group in alike.values() if len(group) > 1 for name in group}
