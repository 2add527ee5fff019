"""Reads a CSV as spreadsheets write it: commas, semicolons or tabs, any line ends, UTF-8 or UTF-16."""

import csv
import io
from collections.abc import Collection

from pipeline.core.errors import SourceError
from pipeline.storage import files

_DELIMITERS = (",", ";", "\t")
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # Excel's "Unicode text"

Lines = list[tuple[int, list[str]]]


def read_spreadsheet(uri: str, columns: Collection[str]) -> tuple[list[str], Lines]:
    """Returns (names of the columns in lower case, [(number of the line at which a row ends, its cells)]).

    columns: names that are expected; cells are split by what finds most of them. Raises SourceError, with the line, for
    a file that isn't a CSV.
    """
    text = _decoded(uri, files.read_bytes(uri))
    try:
        return _parsed(text, columns)
    except csv.Error as error:
        raise SourceError(f"{uri}: not a CSV ({error}); save it as CSV UTF-8") from error


def _decoded(uri: str, data: bytes) -> str:
    try:
        return data.decode(_ENCODINGS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{uri}: line {line} isn't UTF-8; save it as CSV UTF-8") from error


def _parsed(text: str, columns: Collection[str]) -> tuple[list[str], Lines]:
    best: list[str] = []
    chosen = _DELIMITERS[0]
    for delimiter in _DELIMITERS:
        first = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        names = [name.strip().casefold() for name in first]
        if len({*names} & {*columns}) > len({*best} & {*columns}) or not best:
            best, chosen = names, delimiter
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=chosen)
    rows = [(reader.line_num, cells) for cells in reader]
    return best, rows[1:]
