"""Files of values for rows, by their keys: a .csv with the column key and one of numbers."""

import hashlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from pipeline.config.sampling import Sampling
from pipeline.core.errors import RecipeError
from pipeline.core.shares import counted
from pipeline.storage import files


def table_values(name: str, uri: str, keys: list[str]) -> npt.NDArray[Any]:
    """Returns float64, the value of each key in the column `name` of a .csv file; other keys of the file don't matter.

    Raises RecipeError with the file and the remedy if it isn't there, isn't such a file, or lacks a key.
    """
    said = f"sampling.{name}={uri}"
    try:
        types = pyarrow.csv.ConvertOptions(column_types={"key": pa.string(), name: pa.float64()})
        table = pyarrow.csv.read_csv(io.BytesIO(_content(said, uri)), convert_options=types)
    except pa.ArrowException as error:
        raise RecipeError(f"{said}: is no table ({str(error).splitlines()[0]}); give key,{name} lines") from error
    if not {"key", name} <= set(table.column_names):
        raise RecipeError(f"{said}: has the columns {', '.join(table.column_names)}; key and {name} are needed")
    found = dict(zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True))
    if len(found) < table.num_rows:
        raise RecipeError(
            f"{said}: {counted(table.num_rows - len(found), 'line')} too many, of keys that have one already; leave "
            "one line each"
        )
    missing = [key for key in keys if found.get(key) is None]
    if missing:
        raise RecipeError(
            f"{said}: has no {name} for {counted(len(missing), 'row')}, such as {missing[0]}; add what is missing"
        )
    return np.array([found[key] for key in keys], dtype=np.float64)


def table_digests(sampling: Sampling) -> dict[str, str]:
    """Returns {field: SHA-256 (hex)} of the files of values that a sampling names: part of a run's identity.

    Reads them. Raises RecipeError if one can't be read.
    """
    return {
        name: hashlib.sha256(_content(f"sampling.{name}={uri}", uri)).hexdigest()
        for name, uri in sampling.tables.items()
    }


def _content(said: str, uri: str) -> bytes:
    place = files.absolute(uri)
    if not files.exists(place):
        raise RecipeError(f"{said}: no such file")
    try:
        return files.read_bytes(place)
    except OSError as error:
        raise RecipeError(f"{said}: can't be read ({error.strerror}); give a file") from error
