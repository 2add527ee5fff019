"""Parquet files with an image column, as Hugging Face's data sets have them: `data/train-00000-of-00002.parquet`.

A key is `[SPLIT/]CLASS/NAME`, NAME being the name of the file that the image was, where the data set has kept it once,
else the number of the row in its split. Both are independent of how the rows are cut into files.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.tables.choose_tables import TableOptions
from pipeline.ingestion.sources.tables.columns import LABEL_NAMES, choose_labels, name_rank
from pipeline.ingestion.sources.tables.split_words import split_in
from pipeline.ingestion.sources.tables.unpack_parquet import (
    features,
    image_columns,
    open_parquet,
    scalar_columns,
    unpack,
)
from pipeline.storage import files

_SUFFIX = ".parquet"


@dataclass(frozen=True)
class _Columns:
    """The columns that are used, the same in all files."""

    image: str
    label: str
    names: tuple[str, ...] | None  # of the classes, by their numbers; None: the values are the names


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
    columns = _columns(listing, list(splits), options)
    rows = _Rows()
    total, done = Bytes(sum(int(listing.lengths[row]) for row in splits)), 0
    for number, (row, split) in enumerate(splits.items()):
        labels = _labels(listing, row, columns)
        target = files.join(spool, f"images-{number:05d}.bin")
        images = unpack(listing.place(row), columns.image, target, partial(_report, progress, done, total))
        rows.objects += [target] * len(labels)
        rows.offsets += images.offsets
        rows.lengths += images.lengths
        rows.names += images.names
        rows.splits += [split] * len(labels)
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


def _columns(listing: Listing, parquets: list[int], options: TableOptions) -> _Columns:
    place = listing.place(_first_with_rows(listing, parquets))
    with open_parquet(place) as parquet:
        schema = parquet.schema_arrow
        images = [options.image_column] if options.image_column else image_columns(schema)
        if len(images) != 1 or images[0] not in schema.names:
            raise SourceError(
                f"{place.name}: the images may be in {' or '.join(map(repr, images)) or 'no column'} of "
                f"{schema.names}; choose one with --image-column"
            )
        declared = _class_names(schema)
        label = options.label_column or _declared_label(list(declared))
        scalars = [label] if label is not None and label in schema.names else scalar_columns(schema)
        values = {name: _text(parquet.read([name]).column(0).to_pylist()) for name in scalars}
    if label is not None and label not in values:
        raise SourceError(f"{place.name}: no column {label!r} among {schema.names}; give one of them as --label-column")
    chosen, _ = choose_labels(place.name, values, label, parquet.metadata.num_rows)
    if chosen is None:
        raise SourceError(f"{place.name}: no column of labels among {schema.names}; name it with --label-column")
    return _Columns(images[0], chosen, tuple(declared[chosen]) if chosen in declared else None)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns {column: names of its classes} of the columns that the metadata says hold labels."""
    labels = {name: each for name, each in features(schema).items() if each.get("_type") == "ClassLabel"}
    return {name: list(each["names"]) for name, each in labels.items() if each.get("names")}


def _declared_label(declared: list[str]) -> str | None:
    """Returns the column of labels among those of the metadata; None if it isn't clear, as with fine and coarse."""
    best = min(declared, key=lambda name: name_rank(name, LABEL_NAMES), default=None)
    is_clear = len(declared) == 1 or (best is not None and name_rank(best, LABEL_NAMES) < len(LABEL_NAMES))
    return best if is_clear else None


def _text(values: list[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _labels(listing: Listing, row: int, columns: _Columns) -> list[str]:
    """Returns the class of each row of a file, "" for none. Raises SourceError for a number without a name."""
    place = listing.place(row)
    with open_parquet(place) as parquet:
        for name in (columns.image, columns.label):
            if name not in parquet.schema_arrow.names:
                raise SourceError(f"{place.name}: no column {name!r}, which the first file has; leave this file out")
        values = parquet.read([columns.label]).column(0).to_pylist()
    if columns.names is None:
        return [each.strip() for each in _text(values)]
    found = []
    for value in values:
        if value is not None and value >= len(columns.names):
            raise SourceError(
                f"{place.name}: label {value}, but there are {len(columns.names)} names; mend the metadata"
            )
        found.append("" if value is None or value < 0 else columns.names[value])
    return found


def _index(
    listing: Listing, name: str, columns: _Columns, rows: _Rows, aside: dict[str, int], val_share: float
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
    labelled = LabelledFiles(
        range(len(kept)),
        [keys[position] for position in kept],
        [rows.splits[position] for position in kept],
        [rows.labels[position] for position in kept],
        notes=(f"images from column {columns.image!r}, labels from column {columns.label!r}",),
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
