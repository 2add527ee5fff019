"""Parquet files with an image column, as Hugging Face's data sets have them: `data/train-00000-of-00002.parquet`.

A key is `[SPLIT/]CLASS/NAME`, NAME being the name of the file that the image was, where the data set has kept it once,
else the number of the row in its split. Both are independent of how the rows are cut into files.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.tables.choose_tables import TableOptions
from pipeline.ingestion.sources.tables.parquet_columns import ParquetColumns, choose_columns, labels_and_splits
from pipeline.ingestion.sources.tables.split_words import split_in
from pipeline.ingestion.sources.tables.unpack_parquet import image_columns, open_parquet, unpack
from pipeline.storage import files

_SUFFIX = ".parquet"


@dataclass
class _Rows:
    """Images of all files: columns of equal length."""

    objects: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # "" for none


def matches(listing: Listing) -> bool:
    """Whether there are Parquet files, the first has a column of images, and no image lies outside."""
    parquets = _parquets(listing)
    if not parquets or listing.image_rows:
        return False
    with open_parquet(listing.place(parquets[0])) as parquet:
        return bool(image_columns(parquet.schema_arrow))


def build_index(listing: Listing, name: str, options: TableOptions, spool: str, progress: Progress) -> Index:
    """Returns the index, and writes the images to `spool`. Raises SourceError if a file is damaged, or if it isn't
    clear which columns hold images and labels.
    """
    splits, aside = _splits(listing)
    columns = choose_columns(listing.place(_first_with_rows(listing, list(splits))), options)
    rows = _Rows()
    total, done = Bytes(sum(int(listing.lengths[row]) for row in splits)), 0
    for number, (row, split) in enumerate(splits.items()):
        labels, row_splits = labels_and_splits(listing.place(row), columns, split)
        target = files.join(spool, f"images-{number:05d}.bin")
        images = unpack(listing.place(row), columns.image, target, partial(_report, progress, done, total))
        rows.objects += [target] * len(labels)
        rows.offsets += images.offsets
        rows.lengths += images.lengths
        rows.names += images.names
        rows.splits += row_splits
        rows.labels += labels
        done += int(listing.lengths[row])
    return _index(listing, name, columns, rows, aside, options.val_share)


def _report(progress: Progress, done: int, total: Bytes, written: int) -> None:
    progress("unpack", Bytes(min(done + written, total)), total)


def _parquets(listing: Listing) -> list[int]:
    return [row for row, name in enumerate(listing.names) if name.lower().endswith(_SUFFIX)]


def _splits(listing: Listing) -> tuple[dict[int, str], dict[str, int]]:
    """Returns ({file: its split}, images that are left aside). Raises SourceError for several configurations."""
    parquets = _parquets(listing)
    found = {row: split_in(listing.names[row]) for row in parquets}
    folders: dict[str, set[str]] = {}
    for row, split in found.items():
        folder = listing.names[row].rpartition("/")[0]
        if split_in(folder.rpartition("/")[2]):
            folder = folder.rpartition("/")[0]
        folders.setdefault(split, set()).add(folder)
    several = next((each for each in folders.values() if len(each) > 1), None)
    if several is not None:
        names = ", ".join(sorted(repr(each or ".") for each in several))
        raise SourceError(f"{listing.uri}: several configurations of a data set, in {names}; give one of these folders")
    aside = {}
    if any(found.values()):
        for row in [row for row, split in found.items() if not split]:
            with open_parquet(listing.place(row)) as parquet:
                aside[f"images of {listing.names[row]}, which names no split"] = parquet.metadata.num_rows
            del found[row]
    return found, aside


def _first_with_rows(listing: Listing, parquets: list[int]) -> int:
    for row in parquets:
        with open_parquet(listing.place(row)) as parquet:
            if parquet.metadata.num_rows:
                return row
    raise SourceError(f"{listing.uri}: no Parquet file has rows; download them again")


def _index(
    listing: Listing, name: str, columns: ParquetColumns, rows: _Rows, aside: dict[str, int], val_share: float
) -> Index:
    keys = _keys(rows)
    lacking = [position for position, label in enumerate(rows.labels) if not label]
    # A split without any label is a test set of a competition, and no fault.
    unlabelled = set(rows.splits) - {split for split, label in zip(rows.splits, rows.labels, strict=True) if label}
    refusals = []
    for position in lacking:
        split = rows.splits[position]
        if split in unlabelled:
            aside[f"images of {split or 'the source'} without labels"] = rows.splits.count(split)
        else:
            refusals.append(Refusal(keys[position], split, f"no label in column {columns.label!r}", None))
    kept = [position for position, label in enumerate(rows.labels) if label]
    others = [row for row, each in enumerate(listing.names) if row not in set(_parquets(listing))]
    images = replace(
        listing,
        names=[keys[position] for position in kept] + [listing.names[row] for row in others],
        objects=[rows.objects[position] for position in kept] + [listing.objects[row] for row in others],
        offsets=np.array([rows.offsets[p] for p in kept] + [0] * len(others), dtype=np.int64),
        lengths=np.array([rows.lengths[p] for p in kept] + [0] * len(others), dtype=np.int64),
    )
    splits = f", splits from column {columns.split!r}" if columns.split else ""
    labelled = LabelledFiles(
        range(len(kept)),
        [keys[position] for position in kept],
        [rows.splits[position] for position in kept],
        [rows.labels[position] for position in kept],
        notes=(f"images from column {columns.image!r}, labels from column {columns.label!r}{splits}",),
        aside=aside,
        refusals=refusals,
    )
    order = {each: number for number, each in enumerate(columns.names or ())}
    sort_key = order.__getitem__ if order else int if all(each.isdecimal() for each in set(rows.labels)) else None
    return labelled_index(images, name, "parquet", labelled, sort_key, val_share)


def _keys(rows: _Rows) -> list[str]:
    number: Counter[str] = Counter()
    named, numbered = [], []
    for split, label, name in zip(rows.splits, rows.labels, rows.names, strict=True):
        folder = "/".join(part for part in (split, label) if part)
        named.append(f"{folder}/{name}" if name else "")
        numbered.append(f"{folder}/{number[split]:08d}")
        number[split] += 1
    count = Counter(named)
    return [key if key and count[key] == 1 else other for key, other in zip(named, numbered, strict=True)]
