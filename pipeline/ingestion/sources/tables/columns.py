"""Chooses the columns of a table: which names the files, which holds the labels, and which the splits, if any does.

By content first: the column of files is the one that names most of them. Names of columns decide only between several
that would do.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.tables.finder import Finder, Naming
from pipeline.ingestion.sources.tables.read import Table

# Columns of labels by name, names before numbers. Compared in lower case, without signs.
_NAMES = ("label", "labels", "labelname", "class", "classname", "classes", "classlabel", "category", "categoryname")
_THINGS = ("target", "targets", "species", "breed", "variety", "diagnosis", "dx", "emotion", "finelabel", "wnid", "y")
LABEL_NAMES = (*_NAMES, *_THINGS, "labelid", "classid", "categoryid", "labelidx", "classidx")
_FILE_NAMES = ("filename", "file", "filepath", "path", "image", "imagepath", "imagename", "img", "imageid", "id")
_SPLIT_NAMES = ("split", "set", "subset", "partition", "usage", "phase", "mode", "dataset")
# Columns of truth values, as fastai writes them: the splits of true and of false.
_TRUTH_NAMES = {
    "isvalid": ("val", "train"),
    "isval": ("val", "train"),
    "istest": ("test", "train"),
    "istrain": ("train", "val"),
    "istraining": ("train", "val"),
    "istrainingimage": ("train", "val"),
}
_MOST_SPLITS = 12  # different values in a column of splits
_WHOLE = re.compile(r"\s*-?\d+(\.0*)?\s*")
_TRUTH = {"true": 0, "1": 0, "false": 1, "0": 1}


@dataclass(frozen=True)
class Choice:
    """The columns of a table that are used."""

    files: str
    naming: Naming
    label: str | None  # None: the table has no labels
    labels: list[str]  # of each row, "" where there is none
    splits: list[str] | None  # of each row: train, val or test; None without a column of splits
    split: str | None  # the name of that column


def choose_columns(
    table: Table,
    finder: Finder,
    split_of: Callable[[str], str | None],
    image_column: str | None = None,
    label_column: str | None = None,
) -> Choice | None:
    """Returns the columns to use; None if no column names files.

    image_column, label_column: names given by the user. split_of: the split that a word stands for. Raises SourceError
    if such a column is missing, or if several could hold the labels.
    """
    for column in (image_column, label_column):
        if column is not None and column not in table.columns:
            raise SourceError(f"{table.name}: no column {column!r} among {_listed(table.columns)}; give one of them")
    found = _files(table, finder, image_column)
    if found is None:
        return None
    files, naming = found
    split, splits = _splits(table, files, split_of)
    rest = {name: values for name, values in table.columns.items() if name not in (files, split)}
    label, labels = choose_labels(table.name, rest, label_column, table.num_rows)
    return Choice(files, naming, label, labels, splits, split)


def _files(table: Table, finder: Finder, wanted: str | None) -> tuple[str, Naming] | None:
    candidates = [wanted] if wanted is not None else list(table.columns)
    found = {name: finder.naming(table.columns[name]) for name in candidates}
    most = max((number for _, number in found.values()), default=0)
    if not most:
        return None
    # Of several that name the same number of files, the one with suffixes, then the one with the plainest name.
    best = [name for name, (_, number) in found.items() if number == most]
    best.sort(key=lambda name: (found[name][0].spelling != "exact", name_rank(name, _FILE_NAMES)))
    return best[0], found[best[0]][0]


def _splits(table: Table, files: str, split_of: Callable[[str], str | None]) -> tuple[str | None, list[str] | None]:
    """Returns (name of the column of splits, split of each row), or (None, None)."""
    for name, values in table.columns.items():
        if name != files and (splits := column_of_splits(table.name, name, values, split_of)):
            return name, splits
    return None, None


def may_hold_splits(name: str) -> bool:
    """Whether a column has a name of columns of splits."""
    return _plain(name) in (*_SPLIT_NAMES, *_TRUTH_NAMES)


def column_of_splits(
    table: str, name: str, values: Sequence[str], split_of: Callable[[str], str | None]
) -> list[str] | None:
    """Returns the split of each row that a column says, None if it doesn't hold splits.

    Raises SourceError if the name of the column and some of the values say so, and other values don't: rows that are
    meant for a test would be trained on.
    """
    plain, distinct = _plain(name), list(dict.fromkeys(values))
    if len(distinct) > _MOST_SPLITS:
        return None
    words = {value: split_of(value.strip()) for value in distinct}
    if plain in _TRUTH_NAMES:
        truth = {value: _TRUTH.get(value.strip().lower()) for value in distinct}
        words = {value: None if found is None else _TRUTH_NAMES[plain][found] for value, found in truth.items()}
    if all(words.values()) and (len(distinct) > 1 or may_hold_splits(name)):
        return [str(words[value]) for value in values]
    if may_hold_splits(name) and any(words.values()):
        known, odd = (next(value for value in distinct if bool(words[value]) is wanted) for wanted in (True, False))
        what = f"{odd!r}, which is no split" if odd.strip() else "rows without a value"
        raise SourceError(
            f"{table}: column {name!r} has {known!r} and also {what}; write a split into each row, or remove those rows"
        )
    return None


def choose_labels(
    table: str, columns: dict[str, list[str]], wanted: str | None, num_rows: int
) -> tuple[str | None, list[str]]:
    """Returns (name of the column of labels, label of each row); (None, all "") if there is none."""
    if wanted is not None:
        return wanted, label_texts(columns.get(wanted, [""] * num_rows))
    # A column of whole numbers of which one is missing is one of 1.0 and NaN, as pandas writes it.
    columns = {name: _without_nan(values) for name, values in columns.items()}
    named = {name: v for name, v in columns.items() if name_rank(name, LABEL_NAMES) < len(LABEL_NAMES) and any(v)}
    if not named and (one_hot := _one_hot(columns)) is not None:
        return one_hot
    pool = {name: v for name, v in (named or columns).items() if not _is_measure(v)}
    if not named:
        # A column that has one value, or another one in each row, says nothing about classes.
        pool = {name: v for name, v in pool.items() if 1 < len(set(v) - {""}) < max(num_rows, 3)}
    pool = _without_doubles(pool)
    words = [name for name, v in pool.items() if not _is_numbers(v)]
    if len(pool) > 1 and len(words) == 1:
        pool = {words[0]: pool[words[0]]}
    if len(pool) > 1:
        raise SourceError(
            f"{table}: the labels may be in any of the columns {_listed(pool)}; choose one with --label-column"
        )
    for name, values in pool.items():
        return name, label_texts(values)
    return None, [""] * num_rows


def _without_nan(values: Sequence[str]) -> list[str]:
    return ["" if value.strip().lower() == "nan" else value for value in values]


def label_texts(values: Sequence[str]) -> list[str]:
    """Returns labels without spaces around them; NaN becomes "", none, and whole numbers written as 3.0 become 3."""
    values = _without_nan(values)
    if all(_WHOLE.fullmatch(value) for value in set(values) if value):
        return [value.partition(".")[0] for value in values]
    return [value.strip() for value in values]


def _without_doubles(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the columns without those that say the same as another one, as `label` 3 and `class_name` cat do.

    Of two that do, words are kept rather than numbers, then the plainer name.
    """
    order = sorted(columns, key=lambda name: (_is_numbers(columns[name]), name_rank(name, LABEL_NAMES)))
    kept: list[str] = []
    for name in order:
        if not any(_is_one_to_one(columns[name], columns[other]) for other in kept):
            kept.append(name)
    return {name: columns[name] for name in columns if name in kept}


def _is_one_to_one(some: Sequence[str], others: Sequence[str]) -> bool:
    return len(set(zip(some, others, strict=True))) == len(set(some)) == len(set(others))


def _one_hot(columns: dict[str, list[str]]) -> tuple[str, list[str]] | None:
    """Returns (description, label of each row) if two or more columns have one 1 in each row, and else 0."""
    flags = {name: values for name, values in columns.items() if set(values) <= {"0", "1", "0.0", "1.0"}}
    if len(flags) < 2:
        return None
    rows = list(zip(*flags.values(), strict=True))
    marked = [[name for name, value in zip(flags, row, strict=True) if value[0] == "1"] for row in rows]
    if any(len(names) != 1 for names in marked):
        return None
    return f"{next(iter(flags))} ... {list(flags)[-1]}", [names[0] for names in marked]


def _is_measure(values: Sequence[str]) -> bool:
    """Whether a column holds numbers with a fraction, such as coordinates and probabilities."""
    some = [value for value in values[:1000] if value]
    return all(map(_is_number, some)) and not all(map(_WHOLE.fullmatch, some))


def _is_numbers(values: Sequence[str]) -> bool:
    return all(_WHOLE.fullmatch(value) for value in set(values) if value)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def name_rank(name: str, names: Sequence[str]) -> int:
    """Returns the place of a column's name in a list of plain names, the number of these if it isn't there."""
    plain = _plain(name)
    return names.index(plain) if plain in names else len(names)


def _listed(names: Sequence[str] | dict[str, list[str]]) -> str:
    shown = [repr(name) for name in list(names)[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
