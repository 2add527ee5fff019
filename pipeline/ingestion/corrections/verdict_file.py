"""The CSV of doubtful labels: written for spreadsheets and programs, read back with a verdict in each line.

A verdict is `keep`, `remove` or the name of a class; no verdict leaves the row as it is. A class with one of these two
names, or one that begins with `class:`, is written with `class:` before it.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.core.errors import SourceError
from pipeline.ingestion.corrections.cells import from_cell, to_cell
from pipeline.ingestion.corrections.spreadsheet import read_spreadsheet
from pipeline.storage import files

KEEP, REMOVE = "keep", "remove"
COLUMNS = ("split", "key", "class", "suggested", "belief", "verdict")
_IS_CLASS = "class:"


@dataclass(frozen=True)
class Doubt:
    """A row of a data set with a doubtful label, as a line of the CSV."""

    split: str
    key: str
    given: str  # name of the class
    suggested: str  # name of the class
    belief: float  # probability of the given class


@dataclass(frozen=True)
class Verdict:
    """What a person says of a row."""

    line: int  # of the file, from 1
    split: str  # "" if the file doesn't say
    key: str
    given: str  # name of the class that the person saw; "" if the file doesn't say
    verdict: str  # KEEP, REMOVE, or the name of a class if `is_class`
    is_class: bool


def csv_bytes(doubts: Iterable[Doubt]) -> bytes:
    """Returns the CSV without verdicts: UTF-8 with a byte order mark and CRLF, as spreadsheets expect it."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for each in doubts:
        writer.writerow([*map(to_cell, (each.split, each.key, each.given, each.suggested)), f"{each.belief:.4g}", ""])
    return out.getvalue().encode("utf-8-sig")


def class_cell(name: str) -> str:
    """Returns the verdict for a class, as it is written into a cell."""
    is_word = name.casefold() in (KEEP, REMOVE, "") or name.startswith(_IS_CLASS) or name != name.strip()
    return to_cell(_IS_CLASS + name if is_word else name)


def read_verdicts(uri: str) -> list[Verdict]:
    """Returns the lines of a CSV that have a verdict.

    Takes what spreadsheets write: commas, semicolons or tabs, any line ends, UTF-8 with or without a byte order mark,
    or UTF-16. Other columns than those of COLUMNS are ignored. Raises SourceError if the file isn't there, is no such
    CSV, or has no verdict.
    """
    if files.kind(uri) != "file":
        raise SourceError(f"{uri}: no such file; give the CSV that label-problems.html has saved")
    header, lines = read_spreadsheet(uri, COLUMNS)
    missing = [name for name in ("key", "verdict") if name not in header]
    if missing:
        raise SourceError(
            f"{uri}: no column {missing[0]!r} in the first line ({', '.join(header)[:80]}); "
            f"the columns are {', '.join(COLUMNS)}"
        )
    places = {name: header.index(name) for name in COLUMNS if name in header}
    verdicts = [each for line, cells in lines if (each := _verdict(line, cells, places))]
    if not verdicts:
        raise SourceError(f"{uri}: no line has a verdict; write keep, remove or a class into the column 'verdict'")
    return verdicts


def _verdict(line: int, cells: list[str], places: dict[str, int]) -> Verdict | None:
    values = {name: from_cell(cells[at]) if at < len(cells) else "" for name, at in places.items()}
    word = values["verdict"].strip()
    if not word:
        return None
    is_class = word.casefold() not in (KEEP, REMOVE)
    name = values["verdict"].lstrip().removeprefix(_IS_CLASS) if word.startswith(_IS_CLASS) else word
    return Verdict(
        line,
        values.get("split", "").strip(),
        values["key"],
        values.get("class", ""),
        name if is_class else word.casefold(),
        is_class,
    )
