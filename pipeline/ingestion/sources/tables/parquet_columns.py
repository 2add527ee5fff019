"""The columns of Parquet files with images: which holds the images, which the labels, and which the splits, if any."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.archives.ranged import Place
from pipeline.ingestion.sources.recognise.split_words import split_of
from pipeline.ingestion.sources.tables.choose_tables import TableOptions
from pipeline.ingestion.sources.tables.columns import (
    LABEL_NAMES,
    choose_labels,
    column_of_splits,
    label_texts,
    may_hold_splits,
    name_rank,
)
from pipeline.ingestion.sources.tables.unpack_parquet import features, image_columns, open_parquet, scalar_columns


@dataclass(frozen=True)
class ParquetColumns:
    """The columns that are used, the same in all files."""

    image: str
    label: str
    names: tuple[str, ...] | None  # of the classes, by their numbers; None: the values are the names
    split: str | None  # None: the names of the files say the splits


def choose_columns(place: Place, options: TableOptions) -> ParquetColumns:
    """Returns the columns of a file, which must have rows. Raises SourceError if it isn't clear which they are."""
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
        split = _split_column(place, parquet, label)
        scalars = [label] if label is not None and label in schema.names else scalar_columns(schema)
        scalars = [name for name in scalars if name != split]
        values = {name: _text(parquet.read([name]).column(0).to_pylist()) for name in scalars}
    if label is not None and label not in values:
        raise SourceError(f"{place.name}: no column {label!r} among {schema.names}; give one of them as --label-column")
    chosen, _ = choose_labels(place.name, values, label, parquet.metadata.num_rows)
    if chosen is None:
        raise SourceError(f"{place.name}: no column of labels among {schema.names}; name it with --label-column")
    return ParquetColumns(images[0], chosen, tuple(declared[chosen]) if chosen in declared else None, split)


def _split_column(place: Place, parquet: Any, label: str | None) -> str | None:
    """Returns the column of splits; None if there is none besides the column of labels."""
    for name in scalar_columns(parquet.schema_arrow):
        if name != label and may_hold_splits(name) and _splits_in(place, parquet, name):
            return name
    return None


def _splits_in(place: Place, parquet: Any, column: str) -> list[str] | None:
    return column_of_splits(place.name, column, _text(parquet.read([column]).column(0).to_pylist()), split_of)


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


def labels_and_splits(place: Place, columns: ParquetColumns, split: str) -> tuple[list[str], list[str]]:
    """Returns (class, split) of each row of a file, the class "" for none. split: the one in the file's name.

    Raises SourceError for a number without a name.
    """
    with open_parquet(place) as parquet:
        for name in filter(None, (columns.image, columns.label, columns.split)):
            if name not in parquet.schema_arrow.names:
                raise SourceError(f"{place.name}: no column {name!r}, which the first file has; leave this file out")
        values = parquet.read([columns.label]).column(0).to_pylist()
        splits = _splits_in(place, parquet, columns.split) if columns.split else [split] * len(values)
    if splits is None:
        raise SourceError(f"{place.name}: column {columns.split!r} names no splits, as that of the first file; mend it")
    return _class_of_each(place, values, columns), splits


def _class_of_each(place: Place, values: list[Any], columns: ParquetColumns) -> list[str]:
    if columns.names is None:
        return label_texts(_text(values))
    found = []
    for value in values:
        if value is not None and value >= len(columns.names):
            raise SourceError(
                f"{place.name}: label {value}, but there are {len(columns.names)} names; mend the metadata"
            )
        found.append("" if value is None or value < 0 else columns.names[value])
    return found
