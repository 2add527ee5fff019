"""Text in cells of a CSV that passes through a spreadsheet: not taken for a formula, a number or a date on the way.

A spreadsheet runs what begins with a sign of a formula, and makes 7 of 007, a date of 1-2 and 100000 of 1e5. Such text
gets an apostrophe before it, which stays in the cell and is taken away when the CSV is read.
"""

import re

_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_BETWEEN = r"[-./, ]*"
_ENDANGERED = re.compile(
    rf"""'*(?:
        [=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20].*              # a formula (CWE-1236)
        | (?!(?:0|[1-9]\d{{0,14}})\Z) [\d.,:/\\%$() eE+\-]*\d[\d.,:/\\%$() eE+\-]*   # another number than it shows
        | {_MONTH}{_BETWEEN}\d+(?:{_BETWEEN}\d+)? | \d+{_BETWEEN}{_MONTH}(?:{_BETWEEN}\d+)?
        | true | false
    )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def to_cell(text: str) -> str:
    """Returns a text as it is written into a cell; every text has its own."""
    return f"'{text}" if _ENDANGERED.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Returns the text that `to_cell` has made a cell of."""
    return cell[1:] if cell.startswith("'") and _ENDANGERED.fullmatch(cell[1:]) else cell
