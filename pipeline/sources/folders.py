"""Class folders: `[.../]SPLIT/CLASS/NAME.jpg`, or `[.../]CLASS/NAME.jpg` without splits."""

from collections import Counter

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.sources.index import Index, hold_out, sample_table
from pipeline.sources.members import Listing, Member

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
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


def is_image(member: Member) -> bool:
    """Whether a file is an image by its name (hidden files such as macOS's `._x.jpg` are not)."""
    base = member.name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def matches(listing: Listing) -> bool:
    """Whether the listing looks like class folders: an image in a folder."""
    return any("/" in member.name and is_image(member) for member in listing.members)


def build_index(listing: Listing, name: str) -> Index:
    """Returns the index; a lone `test` split becomes `val`; without splits a tenth of each class is held out.

    The label of a class is its rank among the sorted class names (ImageNet's convention too).
    Raises SourceError if the tree isn't one of class folders.
    """
    images = [member for member in listing.members if is_image(member)]
    places = [_place(member, listing.uri) for member in images]
    found = {split for split, _ in places}
    if len(found) > 1 and None in found:
        stray = next(member.name for member, (split, _) in zip(images, places, strict=True) if split is None)
        raise SourceError(f"{listing.uri}: {stray!r} is in none of the splits {sorted(filter(None, found))}; move it")
    classes = tuple(sorted({class_name for _, class_name in places}))
    if len(classes) < 2:
        raise SourceError(f"{listing.uri}: one class only ({classes[0]!r}); a classifier needs two or more folders")
    label = {class_name: index for index, class_name in enumerate(classes)}
    rename = {"test": "val"} if "val" not in found else {}
    by_split: dict[str, list[tuple[Member, int]]] = {}
    for member, (split, class_name) in zip(images, places, strict=True):
        by_split.setdefault(rename.get(split or "", split or ""), []).append((member, label[class_name]))
    tables = {split: _table(by_split[split]) for split in sorted(by_split)}
    if "" in tables:
        tables = dict(zip(("train", "val"), hold_out(tables[""], HELD_OUT_FRACTION), strict=True))
    for needed in ("train", "val"):
        if needed not in tables:
            raise SourceError(f"{listing.uri}: no {needed} split among {sorted(tables)}; add a {needed}/ folder")
    trained = Counter(tables["train"]["label"].to_pylist())
    for class_name, index in label.items():
        if index not in trained:
            raise SourceError(f"{listing.uri}: class {class_name!r} has no training image; add some or remove it")
    return Index(name, "folders", classes, "file", tables, num_ignored=len(listing.members) - len(images))


def _place(member: Member, uri: str) -> tuple[str | None, str]:
    folders = member.name.split("/")[:-1]
    if not folders or folders[-1].lower() in _SPLIT_NAMES:
        raise SourceError(f"{uri}: {member.name!r} isn't in a class folder; expected SPLIT/CLASS/NAME or CLASS/NAME")
    split = _SPLIT_NAMES.get(folders[-2].lower()) if len(folders) > 1 else None
    return split, folders[-1]


def _key(name: str) -> str:
    # From the split on, so that a folder, a tar of it and a tar of its parent give the same keys.
    parts = name.split("/")
    return "/".join(parts[-3:] if len(parts) > 2 and parts[-3].lower() in _SPLIT_NAMES else parts[-2:])


def _table(rows: list[tuple[Member, int]]) -> pa.Table:
    members = [member for member, _ in rows]
    return sample_table(
        [_key(m.name) for m in members],
        [label for _, label in rows],
        [m.object for m in members],
        [m.offset for m in members],
        [m.length for m in members],
    )
