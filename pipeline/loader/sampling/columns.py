"""The columns of a split's rows, and expressions of them: read once a process, without reading an image."""

import difflib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.expressions import CLASS, column_names, parse_expression
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.row_reader import load_index
from pipeline.dataset.schema import PROVENANCE_SCHEMA
from pipeline.loader.sampling.evaluate import evaluate

Column = npt.NDArray[Any]
_OF_INDEX = {"label": "label", "height": "height", "width": "width", "bytes": "length", "crc32": "crc32"}
SOURCE = "source"
COLUMNS = (CLASS, SOURCE, *(name for name in PROVENANCE_SCHEMA.names if name not in ("thumbnail", "offset")))


@dataclass(frozen=True)
class SplitColumns:
    """The columns of the first `num_rows` rows of a split."""

    uri: str
    data: Manifest
    split_name: str
    num_rows: int

    @property
    def split(self) -> Split:
        """The split in the manifest."""
        return self.data.split(self.split_name)

    def column(self, name: str) -> Column:
        """Returns a column: numbers (NaN where one is missing), or texts ("" where one is missing)."""
        # Most columns are in the index of the rows, which the loader needs anyway.
        if name == CLASS:
            return np.array(self.data.classes, dtype=object)[self.column("label")]
        if name == SOURCE:
            return self._sources()
        if name in _OF_INDEX:
            column: Column = getattr(load_index(self.uri, self.split), _OF_INDEX[name])[: self.num_rows]
            return column.astype(np.int64)
        return _provenance_column(self.uri, self.split, name)[: self.num_rows]

    def _sources(self) -> Column:
        """Returns the name of each row's source; the name of the data set where it is no mixture."""
        if not self.data.sources:
            return np.array([self.data.name] * self.num_rows, dtype=object)
        sizes = iter(self.split.row_group_rows)
        names: list[str] = []
        for name, count in self.data.source_row_groups(self.split_name).items():
            names += [name] * sum(next(sizes) for _ in range(count))
        return np.array(names, dtype=object)[: self.num_rows]

    def values(self, field_name: str, text: str) -> Column:
        """Returns the value of an expression for each row, bool, float64, int64 or texts.

        field_name: for messages. Raises RecipeError for a column that isn't there, with the nearest, or types that
        don't go together.
        """
        tree = parse_expression(field_name, text)
        for name in column_names(tree):
            if name not in COLUMNS:
                near = difflib.get_close_matches(name.lower(), COLUMNS, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}? " if near else ""
                raise RecipeError(
                    f"{field_name}={text!r}: the data set has no column {name}; {hint}there are {', '.join(COLUMNS)}"
                )
        columns = {name: self.column(name) for name in column_names(tree)}
        with np.errstate(all="ignore"):  # what isn't finite is judged where it is used
            return np.broadcast_to(evaluate(tree, columns, f"{field_name}={text!r}"), (self.num_rows,))

    def ranges(self, text: str) -> str:
        """Returns where the values of an expression's columns lie, in words: for a filter that no row passes."""
        names = column_names(parse_expression("", text))
        return "; ".join(f"{name} {_range(self.column(name))}" for name in names if self.num_rows)


def _range(column: Column) -> str:
    if column.dtype == object:
        found = sorted(set(column.tolist()))
        return f"is {', '.join(map(repr, found[:5]))}{' ...' if len(found) > 5 else ''}"
    known = column[~np.isnan(column)] if column.dtype.kind == "f" else column
    return f"lies in {known.min():g} to {known.max():g}" if len(known) else "isn't known"


@lru_cache(maxsize=8)
def _provenance_column(uri: str, split: Split, name: str) -> Column:
    column = read_split_provenance(uri, split, [name])[name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_fixed_size_binary(column.type):
        return np.array([value.hex() if value else "" for value in column.to_pylist()], dtype=object)
    if pa.types.is_string(column.type):
        return np.array(column.fill_null("").to_pylist(), dtype=object)
    numbers: Column = column.to_numpy(zero_copy_only=False)
    return numbers.astype(np.float64) if numbers.dtype.kind == "f" else numbers
