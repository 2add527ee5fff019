"""Labels that arrive late: a CSV of key and label, joined to what the models answered."""

import logging
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.core.errors import RegistryError, SourceError
from pipeline.core.shares import counted
from pipeline.ingestion.corrections.cells import from_cell
from pipeline.ingestion.corrections.spreadsheet import read_spreadsheet
from pipeline.retraining.live import store
from pipeline.storage import files

log = logging.getLogger(__name__)

COLUMNS = ("key", "label")


@dataclass(frozen=True)
class LabelCounts:
    """What was found in files of labels."""

    lines: int = 0
    repeated: int = 0  # lines that say again what an earlier one of the same file says
    contradicting: int = 0  # keys that one file gives several labels: they don't count
    incomplete: int = 0  # lines without a key or a label
    unknown: int = 0  # labels that no model of the review has as a class: they don't count
    unpredicted: int = 0  # keys that no model of the review was asked about
    ambiguous: int = 0  # keys that name several images: their labels don't count

    def as_json(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Returns the counts in words, those that are 0 left out."""
        words = (
            (self.repeated, "said twice"),
            (self.contradicting, "with several labels for one key, left out"),
            (self.incomplete, "without key or label"),
            (self.unknown, "of an unknown class, left out"),
            (self.unpredicted, "of an image that these models weren't asked about"),
            (self.ambiguous, "with a key that names several images, left out"),
        )
        return "; ".join([counted(self.lines, "line"), *(f"{number:,} {text}" for number, text in words if number)])

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def check_labels(uri: str) -> bytes:
    """Returns the bytes of a CSV of labels. Raises RegistryError, with one line, if it isn't one or holds no label."""
    if files.kind(uri) != "file":
        raise RegistryError(f"labels={uri}: no such file; give a CSV with the columns key and label")
    found, counts = read_labels(uri)
    if not found:
        raise RegistryError(
            f"labels={uri}: none of {counts.lines:,} lines gives a key and one label; "
            "write both into the columns key and label"
        )
    return files.read_bytes(uri)


def read_labels(uri: str) -> tuple[dict[str, str], LabelCounts]:
    """Returns {key: label} of a CSV, as spreadsheets write it, and what was found there.

    Raises RegistryError if it isn't such a CSV.
    """
    try:
        header, lines = read_spreadsheet(uri, COLUMNS)
    except SourceError as error:
        raise RegistryError(f"labels={error}") from error
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise RegistryError(
            f"labels={uri}: no column {missing[0]!r} in the first line ({', '.join(header)[:80]}); "
            f"the columns are {', '.join(COLUMNS)}"
        )
    places = [header.index(name) for name in COLUMNS]
    lines = [each for each in lines if each[1]]
    labels, repeated, incomplete, contradicting = dict[str, str](), 0, 0, set[str]()
    for _, cells in lines:
        key, label = (from_cell(cells[at]) if at < len(cells) else "" for at in places)
        label = label.strip()
        if not key or not label:
            incomplete += 1
        elif key not in labels:
            labels[key] = label
        elif labels[key] == label:
            repeated += 1
        else:
            contradicting.add(key)
    for key in contradicting:
        del labels[key]
    return labels, LabelCounts(len(lines), repeated, len(contradicting), incomplete)


def stored_labels(registry: str) -> tuple[dict[str, str], LabelCounts]:
    """Returns {key: label} of all files that the registry keeps, a later file before an earlier one."""
    labels, counts = dict[str, str](), LabelCounts()
    for uri in store.label_uris(registry):
        try:
            found, more = read_labels(uri)
        except RegistryError as error:  # one file ends no review; `verify` names it, too
            log.warning("warning: %s; it doesn't count", error)
            continue
        labels |= found
        counts += more
    return labels, counts
