"""Class folders: `[.../]SPLIT/CLASS/NAME.jpg`, or `[.../]CLASS/NAME.jpg` without splits."""

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, labelled_index
from pipeline.ingestion.sources.members import Listing, is_image

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def matches(listing: Listing) -> bool:
    """Whether the source looks like class folders: at least one image in a folder."""
    return any("/" in name and is_image(name) for name in listing.names)


def build_index(listing: Listing, name: str, val_share: float) -> Index:
    """Returns the index of class folders. Raises SourceError if an image isn't in a class folder.

    The label of a class is its rank among the sorted class names, as in ImageNet. Splits: see
    `labelled_index`.
    """
    images = listing.image_rows
    places = [_place(listing.names[row], listing.uri) for row in images]
    found = {split for split, _ in places}
    if len(found) > 1 and None in found:
        stray = next(row for row, (split, _) in zip(images, places, strict=True) if split is None)
        raise SourceError(
            f"{listing.uri}: {listing.names[stray]!r} is in none of the splits {sorted(filter(None, found))}; move it"
        )
    keys = [key_of(listing.names[row]) for row in images]
    splits = [split or "" for split, _ in places]
    labelled = LabelledFiles(images, keys, splits, [class_name for _, class_name in places])
    return labelled_index(listing, name, "folders", labelled, val_share=val_share)


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
