"""Damage to files that a program reads back: sound files of another form, and what a reader says of them."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import PipelineError
from pipeline.dataset.parquet import parquet_bytes

_JSON: list[Any] = [None, True, 3, -1, 2.5, "", "text", "../x", [], ["x"], [1], {}, {"x": 1}, {"keys": "text"}]
_JSON += [[{"key": 1}]]
_COLUMNS = ["renamed", "text", "null", "number", "missing", "more", "empty"]


def check_forms(path: Path, read: Callable[[], Any]) -> None:
    """Gives a file each other form, and asserts that it is read, or refused in one line that names it or its folder."""
    before = path.read_bytes()
    for what, content in other_forms(path.name, before):
        path.write_bytes(content)
        try:
            message = message_of(read)
        except Exception as error:
            raise AssertionError(f"{what}: a traceback") from error
        finally:
            path.write_bytes(before)
        assert message is None or (path.parts[1] in message and "\n" not in message), f"{what}: {message}"


def message_of(read: Callable[[], Any]) -> str | None:
    """Returns the message of the PipelineError that a function raises; None if it raises none."""
    try:
        read()
    except PipelineError as error:
        return str(error)
    return None


def _other_table(table: pa.Table, how: str, column: int) -> pa.Table:
    count = table.num_rows
    if how == "empty":
        return table.slice(0, 0)
    if how == "missing":
        return table.remove_column(column)
    if how == "more":
        return table.append_column("newer", pa.nulls(count, pa.int32()))
    if how == "renamed":
        return table.rename_columns([f"{each}{'_' * (i == column)}" for i, each in enumerate(table.column_names)])
    values = {"null": pa.nulls(count), "number": pa.array(range(count)), "text": pa.array(["€"] * count)}[how]
    return table.set_column(column, table.column_names[column], values)


def other_forms(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (what it is, content) of each sound file whose content has another form."""
    if name.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data))
        for how, column in itertools.product(_COLUMNS, range(table.num_columns)):
            yield f"column {table.column_names[column]} {how}", parquet_bytes(_other_table(table, how, column))
        for column in table.column_names:
            yield f"column {column} has a name that is no text", data.replace(column.encode(), b"\xff" * len(column))
    elif name.endswith(".npz"):
        yield "empty", b""
        yield "no archive", b"archive"
    else:
        values = json.loads(data)
        for place, other in itertools.product(_places(values), [*_JSON, _GONE]):
            yield f"{place} = {other!r}", json.dumps(_with(values, place, other)).encode()


_GONE = object()  # in place of a value: its field isn't there


def _places(values: Any) -> Iterator[tuple[Any, ...]]:
    """Yields the place of each value within a JSON value, itself and one new field first; of a list the first alone."""
    yield ()
    if isinstance(values, dict):
        yield ("newer",)
        for field, inner in values.items():
            yield from ((field, *place) for place in _places(inner))
    if isinstance(values, list) and values:
        yield from ((0, *place) for place in _places(values[0]))


def _with(values: Any, place: tuple[Any, ...], other: Any) -> Any:
    """Returns a JSON value with another value at a place."""
    if not place:
        return None if other is _GONE else other
    copy = list(values) if isinstance(values, list) else dict(values)
    if len(place) > 1:
        copy[place[0]] = _with(values[place[0]], place[1:], other)
    elif other is not _GONE:
        copy[place[0]] = other
    elif place[0] != "newer":
        del copy[place[0]]
    return copy
