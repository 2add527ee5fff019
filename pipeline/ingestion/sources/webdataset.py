"""WebDataset: tars in which a sample is two files with one stem, `NAME.jpg` and `NAME.cls`, the class."""

import re

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.ingestion.sources.folders import split_of
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, labelled_index
from pipeline.ingestion.sources.members import Listing, is_image, open_tars

_LABEL_SUFFIX = ".cls"


def matches(listing: Listing) -> bool:
    """Whether the source holds tars, and no image outside them."""
    return any(name.endswith(".tar") for name in listing.names) and not any(map(is_image, listing.names))


def build_index(listing: Listing, name: str, val_share: float, progress: Progress) -> Index:
    """Returns the index. The split of a tar is the word train, val or test in its path.

    Classes that are all numbers are sorted as numbers. Raises SourceError if an image has no .cls file beside it, or if
    only some of the tars name a split.
    """
    shards = [row for row, each in enumerate(listing.names) if each.endswith(".tar")]
    inside = open_tars(listing, shards, keep=(_LABEL_SUFFIX,), progress=progress)
    images = inside.image_rows
    if not images:
        raise SourceError(f"{listing.uri}: {len(shards)} tars without a .jpg, .jpeg or .png; not WebDataset shards")
    class_names, splits = [], []
    for row in images:
        stem = _stem(inside.names[row])
        content = inside.contents.get(stem + _LABEL_SUFFIX)
        if content is None:
            raise SourceError(f"{listing.uri}: {inside.names[row]!r} has no {_LABEL_SUFFIX} file beside it; add it")
        class_names.append(content.decode("utf-8", "replace").strip())
        splits.append(_split(inside.names[row]))
    if "" in splits and any(splits):
        stray = inside.names[images[splits.index("")]]
        raise SourceError(f"{listing.uri}: the path of {stray!r} names no split, others do; rename its shard")
    numbers = all(each.isdecimal() for each in set(class_names))
    keys = [inside.names[row] for row in images]
    labelled = LabelledFiles(images, keys, splits, class_names)
    return labelled_index(inside, name, "webdataset", labelled, int if numbers else None, val_share)


def _stem(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _split(name: str) -> str:
    for word in re.split(r"[/_.\-]", name.rsplit("/", 1)[0]):
        if split := split_of(word):
            return split
    return ""
