"""Reads a table of file names and labels as text: CSV, TSV, JSON, Parquet, or a list in plain text.

CSV and TSV may be compressed by gzip.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.members import Member
from pipeline.ingestion.sources.tables.json_tables import json_columns, json_lines_columns

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".parquet")
LIST_SUFFIXES = (".txt", ".json")  # many things; tables where what they hold names files
MAX_BYTES = 1 << 30
_MAX_COLUMNS = 4096
_BLOCK_BYTES = 64 << 20  # a row may be no longer
_DELIMITERS = ",;\t|"
# UTF-32 before UTF-16, whose mark is the beginning of its own.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Table:
    """The columns of a table, each value as text. A table without a header has columns "1", "2" and so on."""

    name: str  # relative to the source, for messages
    columns: dict[str, list[str]]

    @property
    def folder(self) -> str:
        """The folder of the table, relative to the source; "" for the source itself."""
        return self.name.rpartition("/")[0]

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()), []))


def is_table(name: str) -> bool:
    """Whether a file is a table by its name. Hidden files and samples of a submission (Kaggle) aren't."""
    base = name.rsplit("/", 1)[-1].lower()
    return base.endswith(SUFFIXES) and not base.startswith(".") and "submission" not in base


def is_table_file(name: str) -> bool:
    """Whether a file that is given as a source is a table by its name."""
    return name.lower().endswith((*SUFFIXES, *LIST_SUFFIXES))


def read_table(member: Member, uri: str, names_file: Callable[[str], bool]) -> Table:
    """Returns a table. Raises SourceError, naming it, if it is empty, damaged or neither UTF-8 nor `as_utf8` can tell.

    uri: of the source, for messages. names_file: whether a value names a file of the source; a first row that does is
    no header.
    """
    place = f"{uri}: {member.name}"
    if not member.length:
        raise SourceError(f"{place}: the table is empty; it needs a column of file names and one of labels")
    if member.length > MAX_BYTES:
        raise SourceError(f"{place}: the table has {member.length:,} bytes, the limit is {MAX_BYTES:,}; split it")
    try:
        columns = _columns(member.name.lower(), member.read(), names_file)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{place}: the table is neither UTF-8 nor marked as UTF-16 ({error}), perhaps Windows-1252; save it as "
            "UTF-8 (Excel: CSV UTF-8)"
        ) from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise SourceError(f"{place}: the table can't be read ({reason}); mend it or download it again") from error
    if not columns or not len(next(iter(columns.values()))):
        raise SourceError(f"{place}: the table has no rows; it needs a column of file names and one of labels")
    return Table(member.name, columns)


def _columns(name: str, data: bytes, names_file: Callable[[str], bool]) -> dict[str, list[str]]:
    if name.endswith(".parquet"):
        return _parquet_columns(data)
    data = as_utf8(_unzipped(data) if name.endswith(".gz") else data)
    if name.endswith(".jsonl"):
        return json_lines_columns(data)
    if name.endswith(".json"):
        return json_columns(data)
    if name.endswith(".txt"):
        return _list_columns(data)
    return _csv_columns(data, names_file)


def _unzipped(data: bytes) -> bytes:
    """Returns the content of a gzip file. Raises ValueError if it is damaged, cut off or too long."""
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
    except EOFError as error:
        raise ValueError("the gzip file is cut off") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"damaged gzip: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError("the gzip file has more than a table can")
    return content


def as_utf8(data: bytes) -> bytes:
    """Returns text as UTF-8 without a byte order mark, from UTF-8, or UTF-16 or UTF-32 with such a mark (Excel's).

    Raises UnicodeDecodeError, a ValueError, for any other. Which single-byte code (Windows-1252, Latin-2, ...) it is in
    can't be seen from the bytes.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding).encode()
    data.decode()
    if b"\0" in data[:4]:
        raise UnicodeDecodeError("utf-8", data[:4], 0, 4, "UTF-16 without a byte order mark")
    return data


def _csv_columns(data: bytes, names_file: Callable[[str], bool]) -> dict[str, list[str]]:
    from pyarrow import csv

    line = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    delimiter = max(_DELIMITERS, key=line.count)
    text = {f"f{number}": pa.string() for number in range(_MAX_COLUMNS)}
    table = csv.read_csv(
        io.BytesIO(data),
        csv.ReadOptions(autogenerate_column_names=True, block_size=_BLOCK_BYTES, use_threads=False),  # errors say rows
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        csv.ConvertOptions(column_types=text, strings_can_be_null=False),
    )
    columns = [column.to_pylist() for column in table.columns]
    first = [column[0].strip() for column in columns]
    if any(map(names_file, first)):
        return {str(number + 1): column for number, column in enumerate(columns)}
    names = [name or f"column {number + 1}" for number, name in enumerate(first)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are named {twice!r}")
    return {name: column[1:] for name, column in zip(names, columns, strict=True)}


def _parquet_columns(data: bytes) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    return {name: column for name in table.column_names if (column := _as_text(table[name])) is not None}


def _as_text(column: pa.ChunkedArray) -> list[str] | None:
    """Returns a column as text, null as ""; None for columns of bytes, lists or structs."""
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return None
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _list_columns(data: bytes) -> dict[str, list[str]]:
    """Returns the columns "1" and "2" of a list with a file name and a label in each line, as Caffe reads them."""
    pairs = [line.rsplit(None, 1) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("not every line has a file name and a label")
    return {"1": [pair[0] for pair in pairs], "2": [pair[1] for pair in pairs]}
