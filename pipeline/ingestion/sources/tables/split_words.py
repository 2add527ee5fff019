"""Split words inside longer names: `trainLabels.csv`, `train_images/`, `data/Test-Set`."""

import re

from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.split_words import UNLABELLED, is_generic, split_name, split_of

# Parts of one folder of images: HAM10000_images_part_1, images_001.
_PART = re.compile(r"(?:part|batch|chunk|shard|images?|imgs?)[ _-]?\d+$", re.IGNORECASE)


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


def in_class_folders(listing: Listing) -> bool:
    """Whether the images lie in two or more folders whose names may be classes, such as `cat` and `dog`."""
    nearest = {listing.names[row].rpartition("/")[0].rpartition("/")[2] for row in listing.image_rows}
    return len(list(filter(is_class_folder, nearest))) > 1
