"""The page of an evaluation: how good, how sure, where it fails, what it looks at, and what the numbers rest on."""

from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.analysis.corruptions import CORRUPTIONS, robustness_means
from pipeline.evaluation.analysis.label_issues import Problem
from pipeline.evaluation.pages.mistakes import confident_mistakes
from pipeline.evaluation.predictions import Predictions
from pipeline.reporting.charts import BLUE, GREY, ORANGE, new_axes, render_page, svg_data_uri, thumbnail
from pipeline.reporting.figures import MAX_MATRIX_CLASSES, confused_pairs, confusion_matrix_chart
from pipeline.storage import files

REPORT_NAME = "evaluation.html"
_MOST_SLICES = 14
_FEWEST_ROWS = 30
_PROBLEM_PICTURES = 35
_LINES = 200  # of a table; metrics.json has all of them


def write_report(
    out: str, dataset: str, data: Manifest, values: dict[str, Any], predictions: Predictions,
    explained: dict[str, Any] | None = None, problems: list[dict[str, Any]] | None = None,
) -> str:  # fmt: skip
    """Writes `evaluation.html` beside the metrics and returns its URI. values: the content of `metrics.json`;
    explained: of `explain.explain`; problems: of `problem_pictures`.
    """
    uri = files.join(out, REPORT_NAME)
    files.write_bytes(uri, render(dataset, data, values, predictions, explained, problems).encode())
    return uri


def render(
    dataset: str, data: Manifest, values: dict[str, Any], predictions: Predictions,
    explained: dict[str, Any] | None, problems: list[dict[str, Any]] | None,
) -> str:  # fmt: skip
    """Returns the page as HTML."""
    found = values["metrics"]
    matrix = np.array(found["confusion_matrix"])
    few = len(data.classes) <= MAX_MATRIX_CLASSES
    return render_page(
        "evaluation.html",
        values=values,
        found=found,
        certificate=values["certificate"],
        classes=sorted(found["per_class"].items(), key=lambda item: item[1]["f1"])[:_LINES],
        pairs=confused_pairs(matrix, data.classes, 10),
        reliability=_reliability(found["calibration"], values["temperature"]),
        slices=values["slices"][:_LINES],
        slice_chart=_slice_chart(values["slices"], found["top1"]),
        robustness=_robustness(values["robustness"]),
        matrix=confusion_matrix_chart(matrix, data.classes) if few else None,
        mistakes=confident_mistakes(dataset, data, values["certificate"]["split"], predictions),
        explained=explained,
        problems=problems,
    )


def _reliability(calibration: dict[str, Any], temperature: dict[str, Any] | None) -> tuple[str, str]:
    """Returns (picture, what to conclude)."""
    figure, plot = new_axes(5.2, 3.9)
    plot.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    lines = [(calibration["bins"], ORANGE, "as it is")]
    if temperature:
        lines.append((temperature["bins_after"], BLUE, f"temperature {temperature['value']:.2f}"))
    for bins, colour, label in lines:
        plot.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", color=colour, label=label)
    plot.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    plot.legend(frameon=False)
    sure, right = calibration["mean_confidence"], calibration["accuracy"]
    off = 100 * (sure - right)
    way = (
        "too sure of itself"
        if off > 1
        else "less sure than it might be"
        if off < -1
        else "about as sure as it is right"
    )
    text = f"The model is {way}: {100 * sure:.1f} % confident on average, {100 * right:.1f} % right"
    if temperature:
        text += (
            f". A temperature of {temperature['value']:.2f}, fitted on {temperature['fitted_on']:,} held-out images, "
            f"brings the calibration error from {calibration['ece']:.3f} to {temperature['ece_after']:.3f}"
        )
    return svg_data_uri(figure), text


def _slice_chart(slices: list[dict[str, Any]], top1: float) -> tuple[str, str] | None:
    """Returns (picture, what to conclude) of the slices that are weakest."""
    shown = [each for each in slices if each["rows"] >= _FEWEST_ROWS][:_MOST_SLICES][::-1]
    if not shown:
        return None
    figure, plot = new_axes(5.2, 0.9 + 0.27 * len(shown))
    names = [f"{each['column']}: {each['value']}" for each in shown]
    middle = [100 * each["top1"] for each in shown]
    low, high = ([100 * abs(each["top1"] - each[side]) for each in shown] for side in ("low", "high"))
    plot.errorbar(middle, names, xerr=[low, high], fmt="o", color=BLUE, ecolor=GREY, capsize=3)
    plot.axvline(100 * top1, color=ORANGE, linestyle="--", linewidth=1)
    plot.set(xlabel="top-1, %, with 95 % interval (dashed: all images)")
    worst = shown[-1]
    return svg_data_uri(figure), (
        f"Lowest is {worst['column']} {worst['value']}: {100 * worst['top1']:.1f} % of {worst['rows']:,} images, "
        f"{100 * (top1 - worst['top1']):.1f} points below all; {len(slices)} slices were looked at"
    )


def _robustness(lines: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Returns severities, a line of shares for each corruption, and what to conclude."""
    if not lines:
        return None
    clean, mean = robustness_means(lines)
    severities = sorted({line["severity"] for line in lines if line["severity"]})
    cells = {
        (line["corruption"], line["severity"]): (line["correct"] / line["rows"], line["strength"]) for line in lines
    }
    table = [
        {
            "name": name,
            "meaning": f"{kind.meaning} ({kind.unit})",
            "cells": [cells[name, severity] for severity in severities],
        }
        for name, kind in CORRUPTIONS.items()
    ]
    worst = min(table, key=lambda line: line["cells"][-1][0])
    text = (
        f"{100 * mean:.1f} % are right on average under corruption, {100 * clean:.1f} % without, of "
        f"{lines[0]['rows']:,} images looked at once. Most harm is done by {worst['name']}: "
        f"{100 * worst['cells'][-1][0]:.1f} % at severity {severities[-1]}"
    )
    return {"severities": severities, "lines": table, "text": text, "mean": mean}


def problem_pictures(
    dataset: str, data: Manifest, split: str, rows: Any, problems: list[Problem]
) -> list[dict[str, Any]]:
    """Returns picture, key, label, suggested label and belief of the first rows in doubt. rows: int64, of all."""
    shown = problems[:_PROBLEM_PICTURES]
    if not shown:
        return []
    table = read_rows(dataset, data.split(split), np.array([rows[each.index] for each in shown]))
    return [
        {
            "picture": thumbnail(image.as_py()),
            "key": key.as_py(),
            "label": data.classes[each.label],
            "suggested": data.classes[each.suggested],
            "belief": each.belief,
        }
        for each, key, image in zip(shown, table["key"], table["image"], strict=True)
    ]
