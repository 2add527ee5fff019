"""A table of (file, label[, split]) beside or above a folder of images: labels.csv, Kaggle's trainLabels.csv.

A key is `[SPLIT/]LABEL/NAME`, as if each image lay in a folder of its class, so that class folders of the same images
give the same rows. Where two files of a class have one name, their whole paths take its place.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.split_words import split_of
from pipeline.ingestion.sources.tables.choose_tables import (
    TableOptions,
    finder_of,
    note_on,
    split_of_table,
    table_rows,
    usable_tables,
)
from pipeline.ingestion.sources.tables.columns import Choice, choose_columns
from pipeline.ingestion.sources.tables.finder import Finder
from pipeline.ingestion.sources.tables.read import Table, read_table
from pipeline.ingestion.sources.tables.split_words import in_class_folders, is_class_folder, split_in


@dataclass
class _Rows:
    """Labelled rows of all tables: columns of equal length, and what can't be used."""

    rows: list[int] = field(default_factory=list)  # indices in the listing
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    unlabelled: dict[int, str] = field(default_factory=dict)  # {index in the listing: its table}


def has_table(listing: Listing) -> bool:
    """Whether there is a table, or a list in plain text whose lines begin with the names of images."""
    return bool(table_rows(listing, finder_of(listing)[0], None))


def matches(listing: Listing) -> bool:
    """Whether there is a table, and the images don't lie in class folders.

    Where a folder might be a class, a table must name files.
    """
    folders = {listing.names[row].rpartition("/")[0] for row in listing.image_rows}
    if not folders or in_class_folders(listing) or not has_table(listing):
        return False
    return not any(map(is_class_folder, "/".join(folders).split("/"))) or names_files(listing)


def names_files(listing: Listing) -> bool:
    """Whether a column of a table names files of the source."""
    finder, _ = finder_of(listing)
    for row in table_rows(listing, finder, None):
        with contextlib.suppress(SourceError):
            table = read_table(listing.member(row), listing.uri, finder.names_file)
            if any(finder.naming(values)[1] for values in table.columns.values()):
                return True
    return False


def build_index(listing: Listing, name: str, options: TableOptions) -> Index:
    """Returns the index. Raises SourceError if no table can be used, or if it isn't clear how.

    Files that a table names and that aren't there, and files with two labels, are refused by name. Images that no table
    names, and those of a table without labels, are left aside and counted.
    """
    finder, files = finder_of(listing)
    chosen, notes = usable_tables(listing, finder, options)
    found = _Rows()
    for table, choice in chosen:
        _add(found, table, choice, finder, files, listing)
    found = _merged(found, listing, [table.name for table, _ in chosen])
    numbers = all(label.isdecimal() for label in set(found.labels))
    labelled = LabelledFiles(
        found.rows,
        _keys(found, listing),
        found.splits,
        found.labels,
        notes=[*(note_on(table, choice) for table, choice in chosen), *notes],
        aside=_aside(found, listing),
        refusals=found.refusals,
        label_files=[listing.names.index(table.name) for table, choice in chosen if choice.label is not None],
    )
    return labelled_index(listing, name, "table", labelled, int if numbers else None, options.val_share)


def hint(listing: Listing) -> str | None:
    """Returns a line on a table whose labels differ from the class folders of the images; None if there is none."""
    finder, files = finder_of(listing)
    for row in table_rows(listing, finder, None):
        with contextlib.suppress(SourceError):  # it may be any table
            table = read_table(listing.member(row), listing.uri, finder.names_file)
            choice = choose_columns(table, finder, split_of)
            if choice is None or choice.label is None:
                continue
            pairs = set()
            for value, label in zip(table.columns[choice.files], choice.labels, strict=True):
                for at in finder.find(value, choice.naming)[:1]:
                    pairs.add((listing.names[files[at]].rpartition("/")[0], label))
            if len(pairs) > len({folder for folder, _ in pairs}):
                return (
                    f"labels are the names of folders; {table.name} has others, in column {choice.label!r}: "
                    "--layout table takes them"
                )
    return None


# --- rows of tables ----------------------------------------------------------------------------------------------


def _add(found: _Rows, table: Table, choice: Choice, finder: Finder, files: Sequence[int], listing: Listing) -> None:
    """Adds the rows of a table. Raises SourceError if a value names several files."""
    table_split = split_of_table(table)
    for number, value in enumerate(table.columns[choice.files]):
        label = choice.labels[number]
        split = choice.splits[number] if choice.splits else table_split
        candidates = [files[row] for row in finder.find(value, choice.naming)]
        row = _one(candidates, value, split, table, listing)
        split = split or (split_in(listing.names[row].rpartition("/")[0]) if row is not None else "") or ""
        if choice.label is None or (not label and split == "test"):
            if row is not None:
                found.unlabelled[row] = table.name
        elif row is None or not label:
            reason = f"missing: {table.name} names it" if row is None else f"no label: {table.name} has none for it"
            found.refusals.append(Refusal(_key(split, label, value.strip()), split, reason, label or None, row))
        else:
            found.rows.append(row)
            found.labels.append(label)
            found.splits.append(split)


def _one(rows: Sequence[int], value: str, split: str, table: Table, listing: Listing) -> int | None:
    """Returns the file that a value names, or None for none. Raises SourceError for several.

    Of files with equal names, the one that lies where the table says, then that of the table's split, then that of
    train: Kaggle's test images have the numbers of its training images.
    """
    tests: list[Callable[[str], bool]] = [
        lambda name: name == f"{table.folder}/{value.strip()}".removeprefix("/"),
        lambda name: bool(split) and split_in(name.rpartition("/")[0]) == split,
        lambda name: split_in(name.rpartition("/")[0]) == "train",
    ]
    for test in tests:
        if len(rows) < 2:
            break
        rows = [row for row in rows if test(listing.names[row])] or rows
    if len(rows) > 1:
        raise SourceError(
            f"{listing.uri}: {table.name}: {value!r} names {listing.names[rows[0]]!r} and {listing.names[rows[1]]!r}; "
            "write the folder into the table, or move one of them out of the source"
        )
    return rows[0] if rows else None


def _merged(found: _Rows, listing: Listing, tables: Sequence[str]) -> _Rows:
    """Returns the rows with one for each file; a file with two labels, such as a picture of two objects, is refused."""
    labels: dict[int, dict[str, None]] = {}
    splits: dict[int, str] = {}
    for row, label, split in zip(found.rows, found.labels, found.splits, strict=True):
        labels.setdefault(row, {})[label] = None
        splits.setdefault(row, split)
    once = _Rows(refusals=list(found.refusals), unlabelled=found.unlabelled)
    for row, each in labels.items():
        once.unlabelled.pop(row, None)
        if len(each) > 1:
            key = _key(splits[row], "", listing.names[row])
            reason = f"two labels: {', '.join(map(repr, list(each)[:3]))} in {', '.join(tables)}"
            once.refusals.append(Refusal(key, splits[row], reason, None, row))
        else:
            once.rows.append(row)
            once.labels.append(next(iter(each)))
            once.splits.append(splits[row])
    return once


def _key(split: str, label: str, name: str) -> str:
    return "/".join(part for part in (split, label, name) if part)


def _keys(found: _Rows, listing: Listing) -> list[str]:
    names = [listing.names[row] for row in found.rows]
    keys = [
        _key(split, label, name.rpartition("/")[2])
        for split, label, name in zip(found.splits, found.labels, names, strict=True)
    ]
    count = Counter(keys)
    return [
        key if count[key] == 1 else _key(split, label, name)
        for key, split, label, name in zip(keys, found.splits, found.labels, names, strict=True)
    ]


def _aside(found: _Rows, listing: Listing) -> dict[str, int]:
    """Returns the images that have no label: how many, by the reason."""
    used = {*found.rows, *(refusal.row for refusal in found.refusals)}
    aside = Counter[str]()
    for row in listing.image_rows:
        if row in found.unlabelled:
            aside[f"images of {found.unlabelled[row]}, which has no labels"] += 1
        elif row not in used:
            split = split_in(listing.names[row].rpartition("/")[0])
            aside[f"images of {split} without labels" if split == "test" else "images that no table names"] += 1
    return dict(aside)
