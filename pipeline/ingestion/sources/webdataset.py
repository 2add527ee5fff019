"""WebDataset: a sample is two files with one stem, `NAME.jpg` and `NAME.cls`, the class; in tars, in one, or unpacked.

Archives without `.cls` files are class folders: one archive for each class or split, or one of them all.
"""

import re
from concurrent.futures import ThreadPoolExecutor

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.ingestion.sources import folders
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, labelled_index
from pipeline.ingestion.sources.members import Listing, is_archive, open_archives
from pipeline.ingestion.sources.recognise.split_words import split_of

_LABEL_SUFFIX = ".cls"
_READERS = 16


def holds_archives(listing: Listing) -> bool:
    """Whether the source holds archives, and no image outside them."""
    return any(map(is_archive, listing.names)) and not listing.image_rows


def matches(listing: Listing) -> bool:
    """Whether the source holds archives only, or images with .cls files beside them."""
    return holds_archives(listing) or _is_labelled(listing)


def _is_labelled(listing: Listing) -> bool:
    labels = {name.removesuffix(_LABEL_SUFFIX) for name in listing.names if name.endswith(_LABEL_SUFFIX)}
    return bool(labels) and any(_stem(listing.names[row]) in labels for row in listing.image_rows)


def build_archives_index(listing: Listing, name: str, val_share: float, spool: str, progress: Progress) -> Index:
    """Returns the index of a folder of archives: WebDataset shards, or class folders in archives."""
    inside = _opened(listing, spool, progress)
    if inside.image_rows and not any(each.endswith(_LABEL_SUFFIX) for each in inside.names):
        return folders.build_index(inside, name, val_share)
    return _labelled_by_files(inside, name, val_share)


def build_index(listing: Listing, name: str, val_share: float, spool: str, progress: Progress) -> Index:
    """Returns the index. The split of a sample is the word train, val or test in the path of its tar or folder.

    Classes that are all numbers are sorted as numbers. Images of test without .cls files are left aside. Raises
    SourceError if another image has no .cls file beside it, or if only some of the tars name a split.
    """
    inside = _opened(listing, spool, progress) if holds_archives(listing) else listing
    return _labelled_by_files(inside, name, val_share)


def _opened(listing: Listing, spool: str, progress: Progress) -> Listing:
    archives = [row for row, each in enumerate(listing.names) if is_archive(each)]
    inside = open_archives(listing, archives, spool, (_LABEL_SUFFIX,), progress)
    if not inside.image_rows:
        raise SourceError(f"{listing.uri}: {len(archives):,} archives without an image; give a folder of images")
    return inside


def _labelled_by_files(listing: Listing, name: str, val_share: float) -> Index:
    label_of = _label_files(listing)
    images = listing.image_rows
    splits = [_split(listing.names[row]) for row in images]
    classes = [label_of.get(_stem(listing.names[row])) for row in images]
    unlabelled = {split for split in set(splits) if split == "test"} - {
        split for split, label in zip(splits, classes, strict=True) if label is not None
    }
    kept = [at for at, split in enumerate(splits) if split not in unlabelled]
    for at in kept:
        if classes[at] is None:
            raise SourceError(
                f"{listing.uri}: {listing.names[images[at]]!r} has no {_LABEL_SUFFIX} file beside it; add it"
            )
    found = {splits[at] for at in kept}
    if "" in found and len(found) > 1:
        stray = listing.names[images[splits.index("")]]
        raise SourceError(f"{listing.uri}: the path of {stray!r} names no split, others do; rename its shard")
    class_names = [classes[at] or "" for at in kept]
    aside = {"images of test without .cls files": len(images) - len(kept)} if unlabelled else {}
    labelled = LabelledFiles(
        [images[at] for at in kept],
        [listing.names[images[at]] for at in kept],
        [splits[at] for at in kept],
        class_names,
        aside=aside,
    )
    numbers = all(each.isdecimal() for each in set(class_names))
    return labelled_index(listing, name, "webdataset", labelled, int if numbers else None, val_share)


def _label_files(listing: Listing) -> dict[str, str]:
    """Returns {stem: text of its .cls file}."""
    rows = [row for row, each in enumerate(listing.names) if each.endswith(_LABEL_SUFFIX)]
    known = listing.contents

    def read(row: int) -> bytes:
        content = known.get(listing.names[row])
        return listing.member(row).read() if content is None else content

    with ThreadPoolExecutor(_READERS, thread_name_prefix="labels") as pool:
        texts = list(pool.map(read, (row for row in rows if row not in listing.unreadable)))
    stems = [listing.names[row].removesuffix(_LABEL_SUFFIX) for row in rows if row not in listing.unreadable]
    return {stem: text.decode("utf-8", "replace").strip() for stem, text in zip(stems, texts, strict=True)}


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.split('.', 1)[0]}"


def _split(name: str) -> str:
    for word in re.split(r"[/_.\-]", name.rpartition("/")[0]):
        if split := split_of(word):
            return split
    return ""
