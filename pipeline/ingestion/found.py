"""What an ingest found in its source, in lines for the user: files, splits, classes, and what was left out."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from pipeline.core.shares import counted
from pipeline.ingestion.sources import Index

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN_CLASSES = 8
_SHOWN_KINDS = 6
_SHOWN_NAMES = 3


def found_lines(index: Index) -> list[str]:
    """Returns how a source was understood: all of its files are labelled images, labels, unreadable or left out.

    Classes are shown with the images of all splits.
    """
    splits = ", ".join(f"{table.num_rows:,} {name}" for name, table in index.splits.items())
    found, labelled = counted(index.num_found, "file"), counted(index.num_rows, "labelled image")
    lines = [f"found {found} ({index.layout}): {labelled} ({splits})"]
    if index.num_label_files:
        lines[0] += f", {counted(index.num_label_files, 'file')} with labels"
    if index.unusable:
        lines[0] += f", {len(index.unusable):,} that can't be read"
    if index.ignored:
        lines[0] += f", {index.num_ignored:,} left out"
    counts = sum(
        np.bincount(table["label"].to_numpy(), minlength=len(index.classes)) for table in index.splits.values()
    )
    shown = [f"{name} {count:,}" for name, count in zip(index.classes, np.asarray(counts).tolist(), strict=True)]
    lines += [f"{len(shown):,} classes: {_some(shown, _SHOWN_CLASSES)}", *index.notes]
    if index.unusable:
        lines.append(f"can't be read: {_some([f'{x.key} ({x.reason})' for x in index.unusable], _SHOWN_NAMES)}")
    if index.ignored:
        lines.append(f"left out: {kinds_text(index.ignored)}")
    return [_CONTROL.sub(lambda match: repr(match.group())[1:-1], line) for line in lines]  # a name may hold a newline


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Returns counts of files by kind, as text."""
    return _some([f"{count:,} x {kind}" for kind, count in kinds.items()], _SHOWN_KINDS)


def _some(texts: Iterable[str], most: int) -> str:
    texts = list(texts)
    return ", ".join(texts[:most]) + (f" ... and {len(texts) - most:,} more" if len(texts) > most else "")
