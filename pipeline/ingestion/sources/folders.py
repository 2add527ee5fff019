"""Class folders: `[.../]SPLIT/CLASS/NAME.jpg`, or `[.../]CLASS/NAME.jpg` without splits, in a folder or an archive."""

import unicodedata
from collections import Counter
from typing import Literal

from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.file_kinds import kind_of
from pipeline.ingestion.sources.recognise.split_lists import with_split_lists
from pipeline.ingestion.sources.recognise.trees import read_tree

ClassLevel = Literal["auto", "first", "last"]


def matches(listing: Listing) -> bool:
    """Whether the source holds an image, which class folders are the last guess for."""
    return bool(listing.image_rows)


def build_index(listing: Listing, name: str, val_share: float, class_level: ClassLevel = "auto") -> Index:
    """Returns the index of class folders. Splits and classes are read from the whole tree (`recognise.trees`).

    The label of a class is its rank among the sorted class names, as in ImageNet. Splits that are missing: see
    `with_split_lists` and `labelled_index`. Raises SourceError if the tree can be read in several ways.
    """
    images, stray = _without_stray(listing)
    counts = Counter(_folder(listing.names[row]) for row in images)
    others: dict[str, Counter[str]] = {folder: Counter() for folder in listing.empty_folders}
    for row in listing.rows_without(images, stray):
        others.setdefault(_folder(listing.names[row]), Counter())[kind_of(listing.names[row])] += 1
    reading = read_tree(counts, others, listing.uri, class_level)
    rows, keys, splits, class_names = [], [], [], []
    for row in images:
        folder, _, base = listing.names[row].rpartition("/")
        meaning = reading.meanings.get(folder)
        if meaning is not None:
            rows.append(row)
            keys.append(f"{meaning.key}/{base}")
            splits.append(meaning.split)
            class_names.append(meaning.class_name)
    class_names = composed(class_names)
    refusals = [Refusal(listing.names[row], "", listing.unreadable[row], None, row) for row in stray]
    labelled = LabelledFiles(rows, keys, splits, class_names, reading.notes, reading.aside, refusals)
    return labelled_index(listing, name, "folders", with_split_lists(listing, labelled), val_share=val_share)


def composed(names: list[str]) -> list[str]:
    """Returns names of classes, composed (Unicode NFC) where a name occurs in several forms, as from macOS."""
    forms: dict[str, set[str]] = {}
    for name in set(names):
        forms.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
    changed = {name: composed for composed, found in forms.items() if len(found) > 1 for name in found}
    return [changed.get(name, name) for name in names] if changed else names


def _without_stray(listing: Listing) -> tuple[list[int], list[int]]:
    """Returns (images, stray files): files that can't be read and lie beside class folders, which may be anything."""
    images = listing.image_rows
    if not listing.unreadable:
        return images, []
    above = set()
    for folder in {_folder(listing.names[row]) for row in images if row not in listing.unreadable}:
        while folder:
            folder = _folder(folder)
            above.add(folder)
    stray = [row for row in images if row in listing.unreadable and _folder(listing.names[row]) in above]
    left_out = set(stray)
    return [row for row in images if row not in left_out], stray


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
