"""Lists of a published data set that say which images are of train and which of test.

Recognised from the files alone: text whose name stands for a split (`meta/train.txt`, `annotations/trainval.txt`,
`TestImages.txt`), each line of which is or begins with the name of an image, with or without its suffix (Food-101,
Oxford-IIIT Pet, MIT Indoor-67); the same as JSON, {class: [names]} (Food-101); and `images.txt` with
`train_test_split.txt`, which number the images (CUB-200-2011).
"""

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.ingestion.sources.labelled import LabelledFiles
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.split_words import UNLABELLED, split_name
from pipeline.ingestion.sources.tables.finder import Finder
from pipeline.ingestion.sources.tables.read import as_utf8

_NUMBERED = ("images.txt", "train_test_split.txt")
_MOST_BYTES = 256 << 20
_MOST_MISSING = 0.05  # of the names of a list: images that somebody has deleted


@dataclass(frozen=True)
class _List:
    """The images of one split, by a list."""

    row: int  # of the list, in the listing
    name: str
    split: str
    images: frozenset[int]  # positions among the labelled files
    num_missing: int  # names of files that aren't there


def with_split_lists(listing: Listing, labelled: LabelledFiles) -> LabelledFiles:
    """Returns labelled files with the splits of the lists that lie beside them; as they are, with a note, if unclear.

    Lists count where the files have no splits, all name images and there is one for train and one for val or test,
    which have no image in common. Images that no list names are left aside.
    """
    if set(labelled.splits) != {""}:
        return labelled
    lists = _numbered(listing, labelled) or list(_named(listing, labelled))
    if not lists:
        return labelled
    names = ", ".join(dict.fromkeys(each.name for each in lists))
    if problem := _problem(lists):
        note = f"{names}: {problem}; left aside: the splits don't follow from {'it' if len(lists) == 1 else 'them'}"
        return replace(labelled, notes=[*labelled.notes, note])
    split_of = {position: each.split for each in lists for position in each.images}
    kept = sorted(split_of)
    counts = ", ".join(f"{len(each.images):,} {each.split}" for each in lists)
    notes = [*labelled.notes, f"splits by {names}: {counts}"]
    if missing := sum(each.num_missing for each in lists):
        notes.append(f"{missing:,} names of these lists aren't there")
    unnamed = len(labelled.rows) - len(kept)
    return replace(
        labelled,
        rows=[labelled.rows[at] for at in kept],
        keys=[f"{split_of[at]}/{labelled.keys[at]}" for at in kept],
        splits=[split_of[at] for at in kept],
        class_names=[labelled.class_names[at] for at in kept],
        notes=notes,
        aside={**labelled.aside, **({"images that no list of a split names": unnamed} if unnamed else {})},
        label_files=sorted({*labelled.label_files, *(each.row for each in lists)}),
    )


def _problem(lists: Sequence[_List]) -> str:
    """Returns why lists can't be followed, "" if they can."""
    splits = [each.split for each in lists]
    if "train" not in splits or len(set(splits)) < 2:
        return f"images of {splits[0]} alone" if len(set(splits)) == 1 else "no images of train"
    if len(set(splits)) < len(splits):
        return "several lists of one split"
    if len(frozenset().union(*(each.images for each in lists))) < sum(len(each.images) for each in lists):
        return "an image is in two of them"
    return ""


# --- lists of names ----------------------------------------------------------------------------------------------


def _named(listing: Listing, labelled: LabelledFiles) -> Iterator[_List]:
    """Yields the lists whose names stand for a split and whose lines name images; of one split text before JSON."""
    finder = Finder([listing.names[row] for row in labelled.rows], range(len(labelled.rows)))
    seen = set[tuple[str, str]]()
    candidates = [row for row in range(len(listing)) if _split_of(listing.names[row])]
    for row in sorted(candidates, key=lambda row: (not listing.names[row].endswith(".txt"), listing.names[row])):
        name, split = listing.names[row], _split_of(listing.names[row])
        if (posixpath.splitext(name)[0], split) in seen or listing.lengths[row] > _MOST_BYTES:
            continue
        names = _names_in(name, listing.member(row).read())
        found = _images(finder, names) or _images(finder, [each.split(None, 1)[0] for each in names if each.strip()])
        if found is not None:
            seen.add((posixpath.splitext(name)[0], split))
            yield _List(row, name, split, *found)


def _split_of(name: str) -> str:
    """Returns the split that the name of a list stands for, "" for none."""
    stem, suffix = posixpath.splitext(name.rpartition("/")[2])
    found = split_name(stem) if suffix.lower() in (".txt", ".lst", ".json") else None
    return "" if found is None or found.short or found.split == UNLABELLED or found.rest else found.split


def _names_in(name: str, data: bytes) -> list[str]:
    """Returns the lines of a text, or the names in the lists of a JSON object; none if it is neither."""
    try:
        text = as_utf8(data).decode()
        if not name.lower().endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        values = json.loads(text)
    except (ValueError, RecursionError):
        return []
    groups = values.values() if isinstance(values, dict) else [values]
    if not all(isinstance(group, list) and all(isinstance(each, str) for each in group) for group in groups):
        return []
    return [each for group in groups for each in group]


def _images(finder: Finder, names: Sequence[str]) -> tuple[frozenset[int], int] | None:
    """Returns (positions of the images that names are of, how many aren't there); None if they are no such names."""
    if len(names) < 2:
        return None
    naming, found = finder.naming(names)
    if not found or naming.skipped:
        return None
    places = [finder.find(name, naming) for name in names]
    missing = sum(not each for each in places)
    if missing > _MOST_MISSING * len(names) or any(len(each) > 1 for each in places):
        return None
    return frozenset(each[0] for each in places if each), missing


# --- numbered images ---------------------------------------------------------------------------------------------


def _numbered(listing: Listing, labelled: LabelledFiles) -> list[_List]:
    """Returns the splits by `images.txt` (number, name) and `train_test_split.txt` (number, 1 for train), or []."""
    rows = {name: row for row, name in enumerate(listing.names) if name.rpartition("/")[2] in _NUMBERED}
    pairs = [(rows[name], rows[other]) for name in rows if (other := _beside(name)) in rows and other != name]
    if len(pairs) != 1:
        return []
    name_of, is_train = (dict(_pairs(listing.member(row).read())) for row in pairs[0])
    if not name_of or name_of.keys() != is_train.keys() or not {*is_train.values()} <= {"0", "1"}:
        return []
    finder = Finder([listing.names[row] for row in labelled.rows], range(len(labelled.rows)))
    lists = []
    for flag, split in (("1", "train"), ("0", "test")):
        found = _images(finder, [name for number, name in name_of.items() if is_train[number] == flag])
        if found is None:
            return []
        lists.append(_List(pairs[0][1], listing.names[pairs[0][1]], split, *found))
    return [replace(lists[0], row=pairs[0][0], name=listing.names[pairs[0][0]]), lists[1]]


def _beside(name: str) -> str:
    """Returns the name of `train_test_split.txt` in the folder of `images.txt`; of another file itself."""
    return f"{name.removesuffix(_NUMBERED[0])}{_NUMBERED[1]}" if name.endswith(_NUMBERED[0]) else name


def _pairs(data: bytes) -> Iterator[tuple[str, str]]:
    """Yields the two words of each line; nothing if a line has others."""
    try:
        lines = [line.split(None, 1) for line in as_utf8(data).decode().splitlines() if line.strip()]
    except ValueError:
        return
    if all(len(line) == 2 for line in lines):
        yield from ((line[0], line[1].strip()) for line in lines)
