"""Writes `label-problems.html` and `label-problems.csv`: doubtful labels, for people who give a verdict on each.

The page needs no server: it saves the verdicts as a CSV, from which `jobs/ingest.py --correct` makes a version of the
data set. A mixture has no versions, so each of its data sets gets a CSV of its own.
"""

import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import Rows
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.evaluation.analysis.label_issues import LabelIssue
from pipeline.ingestion.corrections.cells import to_cell
from pipeline.ingestion.corrections.verdict_file import COLUMNS, Doubt, class_cell, csv_bytes
from pipeline.reporting.charts import render_page, thumbnail
from pipeline.storage import files

PAGE_NAME = "label-problems.html"
_SPLIT = "train"
_MOST_PICTURES, _MOST_BYTES = 2000, 4_000_000  # that a browser opens without a pause
_PICTURES_AT_ONCE = 64


@dataclass(frozen=True)
class ReviewPart:
    """A data set whose labels are corrected by one file."""

    csv: str  # URI of the file beside the page, without verdicts
    saved_name: str  # of the file that the page saves
    command: str  # that makes a version of the data set from the saved file
    numbers: list[int]  # of its doubts, among all


def write_review(
    out: str, dataset: str, data: Manifest, issues: list[LabelIssue], rows: Rows, keys: list[str]
) -> list[str]:
    """Writes the page and the CSV into the folder `out`, and returns the commands that apply the saved verdicts.

    dataset, data: URI and manifest of the data set. issues: doubtful rows of train, the least probable label first.
    rows, keys: of all rows that were examined; an issue's index refers to them.
    """
    named = [_source_and_key(data, keys[each.index]) for each in issues]
    parts = _parts(out, dataset, data, [source for source, _ in named])
    doubts = [
        Doubt(_SPLIT, key, data.classes[each.label], data.classes[each.suggested], each.belief)
        for each, (_, key) in zip(issues, named, strict=True)
    ]
    for part in parts:
        files.write_bytes(part.csv, csv_bytes(doubts[number] for number in part.numbers))
    pictures = list(_pictures(dataset, data, np.array([rows[each.index] for each in issues], dtype=np.int64)))
    files.write_bytes(files.join(out, PAGE_NAME), _render(out, data, doubts, pictures, parts).encode())
    return [part.command for part in parts]


def _source_and_key(data: Manifest, key: str) -> tuple[str, str]:
    """Returns the name of the source of a mixture, "" for another data set, and the key that the row has there."""
    if not data.sources:
        return "", key
    source, _, rest = key.partition("/")
    return source, rest


def _parts(out: str, dataset: str, data: Manifest, sources: list[str]) -> list[ReviewPart]:
    """Returns the files of verdicts. sources: of each doubt the source, "" if the data set is no mixture."""
    if not data.sources:
        return [_part(out, "", dataset, [*range(len(sources))])]
    return [
        _part(out, f"-{name}", source.uri, [number for number, each in enumerate(sources) if each == name])
        for name, source in data.sources.items()
        if name in sources
    ]


def _part(out: str, ending: str, uri: str, numbers: list[int]) -> ReviewPart:
    saved = f"verdicts{ending}.csv"
    return ReviewPart(files.join(out, f"label-problems{ending}.csv"), saved, _command(saved, uri), numbers)


def _command(saved: str, uri: str) -> str:
    return shlex.join(["image-pipeline", "ingest", "--correct", saved, "--onto", uri, "--out", _free_name(uri)])


def _free_name(uri: str) -> str:
    """Returns the URI of a folder, which isn't there yet, for the next corrected version of a data set."""
    path, mark, query = uri.partition("?")  # of a store
    plain, number = re.sub(r"-corrected(-\d+)?$", "", path), 1
    out = f"{plain}-corrected{mark}{query}"
    while files.exists(out):
        number += 1
        out = f"{plain}-corrected-{number}{mark}{query}"
    return out


def _pictures(dataset: str, data: Manifest, rows: Rows) -> Iterator[str]:
    """Yields data URIs of the first rows, as many as a page can hold."""
    index, left = load_index(dataset, data.split(_SPLIT)), _MOST_BYTES
    for start in range(0, min(len(rows), _MOST_PICTURES), _PICTURES_AT_ONCE):
        for image in read_images(index, rows[start : start + _PICTURES_AT_ONCE]):
            picture = thumbnail(bytes(image))
            left -= len(picture)
            if left < 0:
                return
            yield picture


def _render(out: str, data: Manifest, doubts: list[Doubt], pictures: list[str], parts: list[ReviewPart]) -> str:
    shown = doubts[: len(pictures)]
    numbers = {name: number for number, name in enumerate(data.classes)}
    lines = [
        {
            "cells": [*map(to_cell, (each.split, each.key, each.given, each.suggested)), f"{each.belief:.4g}"],
            "suggested": numbers[each.suggested],
        }
        for each in shown
    ]
    saved = [
        {"name": part.saved_name, "numbers": [number for number in part.numbers if number < len(shown)]}
        for part in parts
    ]
    identity = hashlib.sha256(repr((data.digest, shown)).encode()).hexdigest()[:16]
    return render_page(
        "label-problems.html",
        out,
        data=data,
        doubts=list(zip(shown, pictures, strict=True)),
        num_found=len(doubts),
        parts=parts,
        script={
            "id": identity,
            "columns": COLUMNS,
            "classes": list(data.classes),
            "verdicts": [class_cell(name) for name in data.classes],
            "lines": lines,
            "files": saved,
        },
    )
