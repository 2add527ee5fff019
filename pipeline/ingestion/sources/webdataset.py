"""WebDataset: a sample is an image and its label in a file with the same stem; in tars, in one, or unpacked.

The label is the text of `NAME.cls`, or of the field `label`, `cls`, `class` or `target` of `NAME.json`.
"""

import json
import posixpath
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.core.shares import counted
from pipeline.ingestion.sources import folders, named
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing, is_archive, open_archives, stem_of
from pipeline.ingestion.sources.recognise.file_kinds import kind_of
from pipeline.ingestion.sources.recognise.split_words import split_of
from pipeline.ingestion.sources.tables import labels
from pipeline.ingestion.sources.tables.choose_tables import TableOptions
from pipeline.ingestion.sources.tables.split_words import in_class_folders, numbered

_JSON_FIELDS = ("label", "cls", "class", "target", "class_name", "label_name", "class_id", "label_id")
_READERS = 16
_NO_FILE = (-1, "")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def _json_field(data: bytes) -> str:
    """Returns the label in a JSON object, "" for none."""
    try:
        fields = json.loads(data)
    except ValueError:
        return ""
    found = [fields[name] for name in _JSON_FIELDS if name in fields] if isinstance(fields, dict) else []
    return next((str(value).strip() for value in found if isinstance(value, (str, int)) and str(value).strip()), "")


# Suffixes of the files that hold labels, and how a label is read: the first that a source has is taken.
_LABELS: dict[str, Callable[[bytes], str]] = {".cls": _text, ".json": _json_field}


def holds_archives(listing: Listing) -> bool:
    """Whether the source holds archives, and no image outside them."""
    return any(map(is_archive, listing.names)) and not listing.image_rows


def matches(listing: Listing) -> bool:
    """Whether the source holds archives only, or images with files of labels beside them."""
    return holds_archives(listing) or _label_suffix(listing) is not None


def _label_suffix(listing: Listing, shards: Collection[str] = ()) -> str | None:
    """Returns the suffix of the files of labels, None if there are none.

    A .json file may be anything, so one must have a label, and the images may not lie in class folders. shards: see
    `in_class_folders`.
    """
    stems = {stem for row in listing.image_rows for stem in _stems(listing.names[row])}
    for suffix in _LABELS:
        beside = (
            row
            for row, name in enumerate(listing.names)
            if name.endswith(suffix) and name.removesuffix(suffix) in stems and row not in listing.unreadable
        )
        first = next(beside, None)
        if first is None:
            continue
        if suffix == ".cls" or (_json_field(listing.member(first).read()) and not in_class_folders(listing, shards)):
            return suffix
    return None


def build_archives_index(listing: Listing, name: str, tables: TableOptions, spool: str, progress: Progress) -> Index:
    """Returns the index of a folder of archives: WebDataset shards, class folders, or images that a table labels."""
    inside, val_share = _opened(listing, spool, progress), tables.val_share
    together = _with_files_outside(inside, listing)
    if tables.only is not None or labels.matches(together):
        return labels.build_index(together, name, tables)
    suffix = _label_suffix(inside, _shards(listing))
    if suffix is None:
        _check_labels(inside, _shards(listing))
        images = _without_repeats(inside, listing)
        return (named if named.matches(images) else folders).build_index(images, name, val_share)
    return _labelled_by_files(inside, suffix, name, val_share)


def _shards(listing: Listing) -> set[str]:
    """Returns the folders that stand for the shards among the archives of a listing: their names are numbered."""
    return numbered(stem_of(name) for name in listing.names if is_archive(name))


def _check_labels(inside: Listing, shards: Collection[str]) -> None:
    """Raises SourceError for shards of images with captions or the like beside them: their names are no classes."""
    images = [inside.names[row] for row in inside.image_rows]
    beside = {posixpath.splitext(name)[0] for name in inside.names if name.endswith((".json", ".txt"))}
    if all(name.rpartition("/")[0] in shards and beside.intersection(_stems(name)) for name in images):
        raise SourceError(
            f"{inside.uri}: {counted(len(images), 'image')} of WebDataset shards without a label: there is no NAME.cls "
            f"and no field {_JSON_FIELDS[0]!r} in NAME.json; add one of them, or take each shard for a class by "
            "--layout folders"
        )


def _with_files_outside(inside: Listing, listing: Listing) -> Listing:
    """Returns the files in archives and those beside the archives as one listing."""
    beside = listing.only([row for row, name in enumerate(listing.names) if not is_archive(name)])
    return replace(
        inside,
        names=inside.names + beside.names,
        objects=[*inside.objects, *beside.objects],
        offsets=np.concatenate([inside.offsets, beside.offsets]),
        lengths=np.concatenate([inside.lengths, beside.lengths]),
        ignored={kind: count for kind, count in _without_counts(inside.ignored, beside).items() if count},
    )


def _without_counts(ignored: Mapping[str, int], listed: Listing) -> Counter[str]:
    """Returns the files that aren't listed, less those that are listed now."""
    counts = Counter(ignored)
    counts.subtract(Counter(map(kind_of, listed.names)))
    return counts


def _without_repeats(inside: Listing, listing: Listing) -> Listing:
    """Returns the files of archives, `cat/cat/1.jpg` as `cat/1.jpg` where all files of cat.tar lie in a folder cat."""
    names = list(inside.names)  # sorted, so that the files of an archive are a slice
    for stem in {stem_of(name) for name in listing.names if is_archive(name)}:
        folder = f"{stem}/"
        repeat = f"{folder}{stem.rpartition('/')[2]}/"
        chosen = slice(bisect_left(inside.names, folder), bisect_left(inside.names, f"{stem}{chr(ord('/') + 1)}"))
        if all(name.startswith(repeat) for name in inside.names[chosen]):
            names[chosen] = [folder + name.removeprefix(repeat) for name in inside.names[chosen]]
    return replace(inside, names=names)


def class_folders(listing: Listing, spool: str, progress: Progress) -> Listing:
    """Returns the listing, or of one of archives their files, in a folder for each archive."""
    return _without_repeats(_opened(listing, spool, progress), listing) if holds_archives(listing) else listing


def build_index(listing: Listing, name: str, val_share: float, spool: str, progress: Progress) -> Index:
    """Returns the index. The split of a sample is the word train, val or test in the path of its tar or folder.

    Classes that are all numbers are sorted as numbers. Images of test without labels are left aside, other images
    without one are refused by name. Raises SourceError if only some of the tars name a split.
    """
    packed = holds_archives(listing)
    inside = _opened(listing, spool, progress) if packed else listing
    suffix = _label_suffix(inside, _shards(listing) if packed else ())
    if suffix is None:
        raise SourceError(
            f"{listing.uri}: no image has a file with its label beside it; add NAME.cls to each, or give class folders"
        )
    return _labelled_by_files(inside, suffix, name, val_share)


def _opened(listing: Listing, spool: str, progress: Progress) -> Listing:
    archives = [row for row, each in enumerate(listing.names) if is_archive(each)]
    inside = open_archives(listing, archives, spool, (".cls",), progress)
    if not inside.image_rows:
        raise SourceError(
            f"{listing.uri}: {counted(len(archives), 'archive')} without an image; give a folder of images"
        )
    return inside


def _labelled_by_files(listing: Listing, suffix: str, name: str, val_share: float) -> Index:
    file_of = _label_files(listing, suffix)
    images = listing.image_rows
    keys = [listing.names[row] for row in images]
    splits = [_split(key) for key in keys]
    used = [next((file_of[stem] for stem in _stems(key) if stem in file_of), _NO_FILE) for key in keys]
    classes = [label for _, label in used]
    labelled_splits = {split for split, label in zip(splits, classes, strict=True) if label}
    if "" in splits and len(set(splits)) > 1:
        raise SourceError(
            f"{listing.uri}: the path of {keys[splits.index('')]!r} names no split, others do; rename its shard"
        )
    kept, refusals, aside = [], [], 0
    for at, row in enumerate(images):
        if classes[at] or row in listing.unreadable:
            kept.append(at)
        elif splits[at] == "test" and "test" not in labelled_splits:
            aside += 1
        else:
            refusals.append(Refusal(keys[at], splits[at], f"no label: no {suffix} file with one beside it", None, row))
    labelled = LabelledFiles(
        [images[at] for at in kept],
        [keys[at] for at in kept],
        [splits[at] for at in kept],
        [classes[at] for at in kept],
        aside={f"images of test without {suffix} files": aside} if aside else {},
        refusals=refusals,
        label_files=sorted({row for row, label in used if label}),
    )
    numbers = all(each.isdecimal() for each in set(labelled.class_names))
    return labelled_index(listing, name, "webdataset", labelled, int if numbers else None, val_share)


def _label_files(listing: Listing, suffix: str) -> dict[str, tuple[int, str]]:
    """Returns {stem: (row, label)} of the files of labels that have one."""
    rows = [row for row, each in enumerate(listing.names) if each.endswith(suffix) and row not in listing.unreadable]
    known = listing.contents

    def read(row: int) -> str:
        content = known.get(listing.names[row])
        return _LABELS[suffix](listing.member(row).read() if content is None else content)

    with ThreadPoolExecutor(_READERS, thread_name_prefix="labels") as pool:
        texts = list(pool.map(read, rows))
    found = zip(rows, texts, strict=True)
    return {listing.names[row].removesuffix(suffix): (row, text) for row, text in found if text}


def _stems(name: str) -> tuple[str, str]:
    """Returns the path of an image without its suffix, and without all that follows the first dot, as WebDataset."""
    folder, slash, base = name.rpartition("/")
    return posixpath.splitext(name)[0], f"{folder}{slash}{base.split('.', 1)[0]}"


def _split(name: str) -> str:
    for word in re.split(r"[/_.\-]", name.rpartition("/")[0]):
        if split := split_of(word):
            return split
    return ""
