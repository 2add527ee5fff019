"""Writes `evaluation.html`: accuracy, calibration, slices, robustness, mistakes, explanations and the certificate."""

from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation.analysis.corruptions import CORRUPTIONS, robustness_means
from pipeline.evaluation.analysis.label_issues import LabelIssue
from pipeline.evaluation.analysis.looks import looks_text
from pipeline.evaluation.analysis.slices import MIN_RANKED_ROWS
from pipeline.evaluation.pages.mistakes import confident_mistakes
from pipeline.evaluation.predictions import Predictions
from pipeline.reporting.charts import BLUE, GREY, ORANGE, chart_style, new_axes, render_page, svg_data_uri, thumbnail
from pipeline.reporting.figures import MAX_MATRIX_CLASSES, confused_pairs, confusion_matrix_chart
from pipeline.reporting.links import existing
from pipeline.storage import files

REPORT_NAME = "evaluation.html"
_SLICES_SHOWN = 14  # in the chart
_LABEL_ISSUES_SHOWN = 35  # five rows of seven pictures
_TABLE_LINES = 200  # metrics.json has all of them


def write_report(
    out: str, data: Manifest, values: dict[str, Any], predictions: Predictions,
    explained: dict[str, Any] | None = None, issues: list[dict[str, Any]] | None = None,
) -> str:  # fmt: skip
    """Writes `evaluation.html` into the folder `out` and returns its URI.

    values: the content of `metrics.json`. explained: of `explain.explain`. issues: of `label_issue_pictures`.
    """
    uri = files.join(out, REPORT_NAME)
    files.write_bytes(uri, _render(out, data, values, predictions, explained, issues).encode())
    return uri


def _render(
    out: str, data: Manifest, values: dict[str, Any], predictions: Predictions,
    explained: dict[str, Any] | None, issues: list[dict[str, Any]] | None,
) -> str:  # fmt: skip
    found, split = values["metrics"], values["certificate"]["split"]
    matrix = np.array(found["confusion_matrix"])
    return render_page(
        "evaluation.html",
        out,
        values=values,
        links=_links(out, values),
        looks=None if values.get("earlier_looks") is None else looks_text(values["earlier_looks"]),
        found=found,
        certificate=values["certificate"],
        classes=sorted(found["per_class"].items(), key=lambda item: item[1]["f1"])[:_TABLE_LINES],
        pairs=confused_pairs(matrix, data.classes, 10),
        reliability=_reliability(found["calibration"], values["temperature"]),
        slices=values["slices"][:_TABLE_LINES],
        slice_chart=_slice_chart(values["slices"], found["top1"]),
        robustness=_robustness(values["robustness"]),
        matrix=confusion_matrix_chart(matrix, data.classes) if len(data.classes) <= MAX_MATRIX_CLASSES else None,
        mistakes=confident_mistakes(values["dataset"]["uri"], data, split, predictions),
        explained=explained,
        problems=issues,
    )


def _links(out: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (URI, text) of the files that belong to the evaluation, as far as they exist."""
    texts = {
        files.join(values["model"]["uri"], "report.html"): "Training of the model",
        files.join(values["dataset"]["uri"], "quality.html"): "The data set",
        files.join(out, "MODEL_CARD.md"): "Model card",
        files.join(out, "predictions.parquet"): "Predictions, image by image",
        files.join(out, "metrics.json"): "All numbers, as JSON",
        (values["label_problems"] or {}).get("page"): "Training labels in doubt, to decide on",
        (values["label_problems"] or {}).get("table"): "Training labels in doubt, as a table",
    }
    return [(place, texts[place]) for place in existing(*texts)]


@chart_style()
def _reliability(calibration: dict[str, Any], temperature: dict[str, Any] | None) -> tuple[str, str]:
    """Returns (reliability diagram, conclusion)."""
    figure, plot = new_axes(5.2, 3.9)
    plot.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    lines = [(calibration["bins"], ORANGE, "uncalibrated")]
    if temperature:
        lines.append((temperature["bins_after"], BLUE, f"temperature {temperature['value']:.2f}"))
    for bins, colour, label in lines:
        plot.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", color=colour, label=label)
    plot.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    plot.legend(frameon=False)
    confidence, accuracy = calibration["mean_confidence"], calibration["accuracy"]
    gap = 100 * (confidence - accuracy)
    verdict = "overconfident" if gap > 1 else "underconfident" if gap < -1 else "well calibrated on average"
    text = (
        f"The model is {verdict}: its mean confidence is {100 * confidence:.1f} %, its accuracy {100 * accuracy:.1f} %"
    )
    if temperature:
        text += (
            f". A temperature of {temperature['value']:.2f}, fitted on {temperature['fitted_on']:,} held-out images, "
            f"changes the calibration error from {calibration['ece']:.3f} to {temperature['ece_after']:.3f}"
        )
    return svg_data_uri(figure), text


@chart_style()
def _slice_chart(slices: list[dict[str, Any]], top1: float) -> tuple[str, str] | None:
    """Returns (chart, conclusion) of the slices with the lowest top-1, or None if no slice is large enough."""
    shown = [each for each in slices if each["rows"] >= MIN_RANKED_ROWS][:_SLICES_SHOWN][::-1]
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
        f"{100 * (top1 - worst['top1']):.1f} points below the mean; there are {len(slices)} slices"
    )


def _robustness(lines: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Returns the severities, a line of accuracies for each corruption, their mean, and the conclusion."""
    if not lines:
        return None
    clean, mean = robustness_means(lines)
    severities = sorted({line["severity"] for line in lines if line["severity"]})
    cells = {
        (line["corruption"], line["severity"]): (line["correct"] / line["rows"], line["strength"], line["correct"])
        for line in lines
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
        f"Top-1 is {100 * mean:.1f} % on average under corruption and {100 * clean:.1f} % without, on "
        f"{lines[0]['rows']:,} images with one view each. {worst['name']} does the most harm: "
        f"{100 * worst['cells'][-1][0]:.1f} % at severity {severities[-1]}"
    )
    return {"severities": severities, "lines": table, "text": text, "mean": mean, "rows": lines[0]["rows"]}


def label_issue_pictures(
    dataset: str, data: Manifest, split: str, rows: Any, issues: list[LabelIssue]
) -> list[dict[str, Any]]:
    """Returns picture, key, label, suggested label and belief of the first issues. rows: int64, all examined rows."""
    shown = issues[:_LABEL_ISSUES_SHOWN]
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
