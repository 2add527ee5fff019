"""The report: one self-contained HTML file made of `result.json`, the predictions and stored images."""

import importlib.util
import math
import shlex
from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.evaluation.pages.mistakes import confident_mistakes
from pipeline.evaluation.predictions import Predictions
from pipeline.ingestion.sources import digits
from pipeline.loader.stage_times import (
    LOOP_STAGES,
    STAGE_MEANINGS,
    STAGES,
    WAIT_STAGES,
    training_seconds,
    waiting_seconds,
)
from pipeline.models.checkpoint import MODEL_NAME
from pipeline.reporting.charts import BLUE, GREY, ORANGE, chart_style, new_axes, render_page, svg_data_uri
from pipeline.reporting.figures import MAX_MATRIX_CLASSES, confused_pairs, confusion_matrix_chart
from pipeline.reporting.links import existing
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.outputs.live_report import REPORT_NAME
from pipeline.training.outputs.machine_use import read_machine_use
from pipeline.training.outputs.parts import command_of, flat, machine_charts
from pipeline.training.outputs.result import RESULT_NAME
from pipeline.training.outputs.samples import sample_pictures
from pipeline.training.trackers import tensorboard
from pipeline.training.trackers.tensorboard import make_tensorboard


def write_report(job: TrainJob, data: Manifest, result: dict[str, Any], predictions: Predictions) -> str:
    """Writes `report.html` into the run and returns its URI."""
    uri = files.join(job.run, REPORT_NAME)
    parts = {
        "machine_charts": machine_charts(read_machine_use(job.run)),
        "samples": sample_pictures(job, data),
        **command_of(job, result["starts"]),
    }
    files.write_bytes(uri, render(job.dataset, data, result, predictions, job.run, parts).encode())
    return uri


def where_to_look(job: TrainJob) -> list[str]:
    """Returns lines that tell where the run can be followed: its page, and TensorBoard where that is written."""
    lines = [f"report {files.join(job.run, REPORT_NAME)} (written again after each evaluation)"]
    if make_tensorboard in job.trackers:
        # The event files are written without it.
        program = "tensorboard" if importlib.util.find_spec("tensorboard") else "uvx tensorboard"
        lines.append(f"{program} --logdir {shlex.quote(files.join(job.run, tensorboard.FOLDER))}")
    return lines


def render(
    dataset: str,
    data: Manifest,
    result: dict[str, Any],
    predictions: Predictions,
    run: str = "",
    parts: dict[str, Any] | None = None,
) -> str:
    """Returns the report as HTML. run: the folder that the page is for, to which its links are relative.

    parts: what the templates of the machine's use, samples and the command take.
    """
    matrix = np.array(result["val"]["confusion_matrix"])
    return render_page(
        "report.html",
        run,
        result=result,
        links=_links(run, dataset) if run else [],
        stand_in=data.name == digits.NAME,
        pairs=confused_pairs(matrix, data.classes),
        classes=sorted(((v["recall"], v["rows"], name) for name, v in result["val"]["per_class"].items())),
        curves=_curves(result),
        time_bars=_time_bars(result),
        time_words=_time_words(result),
        stages=[
            (name, result["seconds"][name], STAGE_MEANINGS[name]) for name in STAGES if result["seconds"].get(name)
        ],
        bars=_recall_bars(result),
        matrix=confusion_matrix_chart(matrix, data.classes) if len(data.classes) <= MAX_MATRIX_CLASSES else None,
        mistakes=confident_mistakes(dataset, data, result["evaluated"]["split"], predictions),
        recipe=flat(result["recipe"]),
        **({"machine_charts": [], "samples": None, "command": ""} if parts is None else parts),
    )


def _links(run: str, dataset: str) -> list[tuple[str, str]]:
    """Returns (URI, text) of the files that belong to the run, as far as they exist.

    `result.json` is written once the page is, since it makes a run finished.
    """
    texts = {
        files.join(dataset, "quality.html"): "The data set",
        files.join(run, "predictions.parquet"): "Predictions, image by image",
        files.join(run, "config.json"): "Recipe and settings",
        files.join(run, RESULT_NAME): "All numbers, as JSON",
        files.join(run, MODEL_NAME): "Weights",
    }
    there = {files.join(run, RESULT_NAME), *existing(*texts)}
    return [(place, text) for place, text in texts.items() if place in there]


@chart_style()
def _curves(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (picture, text alternative) of each curve over the epochs: loss, top-1, speed, learning rate.

    A run without steps has none.
    """
    history = result["history"]
    if not result["steps"]:
        return []
    epochs = [line["epoch"] for line in history]
    final = {"step": result["steps"], "loss": result["val"]["loss"], "top1": result["val"]["top1"]}
    points = [*result["evaluations"], final]
    point_epochs = [point["step"] / (result["steps"] / result["epochs"]) for point in points]
    speed = [line["images_per_second"] for line in history]
    rate = [line["learning_rate"] for line in history]
    return [
        _loss_curves(epochs, _values(history, "loss"), point_epochs, _values(points, "loss")),
        _top1_curve(point_epochs, [100 * point["top1"] for point in points], result["epochs"]),
        (_curve(epochs, speed, "images/s"), f"{result['images_per_second']:,.0f} images/s on average"),
        (_curve(epochs, rate, "learning rate"), "Learning rate over the epochs"),
    ]


def _values(lines: list[dict[str, Any]], name: str) -> list[float]:
    """Returns the values of a column; NaN, a gap in the curve, where there is none: every step was skipped."""
    return [math.nan if line[name] is None else line[name] for line in lines]


def _loss_curves(
    epochs: list[float], train: list[float], point_epochs: list[float], validation: list[float]
) -> tuple[str, str]:
    figure, axes = new_axes()
    axes.plot(epochs, train, color=BLUE, label="train (augmented)")
    axes.plot(point_epochs, validation, "o-", color=ORANGE, label="validation")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)
    final = validation[-1]
    text = "The validation loss is not finite" if math.isnan(final) else f"The validation loss falls to {final:.3f}"
    return svg_data_uri(figure), text


def _top1_curve(epochs: list[float], percent: list[float], last_epoch: int) -> tuple[str, str]:
    figure, axes = new_axes()
    axes.plot(epochs, percent, "o-", color=ORANGE)
    place = (epochs[-1], percent[-1])
    axes.annotate(f"{percent[-1]:.1f} %", place, xytext=(0, 7), textcoords="offset points", ha="right")
    axes.margins(y=0.12)
    axes.set(xlabel="epoch", ylabel="top-1 on validation, %", xlim=(0, last_epoch * 1.03))
    return svg_data_uri(figure), f"Top-1 reaches {percent[-1]:.1f} %"


def _curve(epochs: list[float], values: list[float], label: str) -> str:
    figure, axes = new_axes()
    axes.plot(epochs, values, color=BLUE)
    axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    return svg_data_uri(figure)


def _time_words(result: dict[str, Any]) -> str:
    """Returns a sentence: the stage that took most of the time, and whether training waited for data."""
    seconds, trained = result["seconds"], training_seconds(result["seconds"])
    waited = waiting_seconds(seconds) / trained
    largest = max(LOOP_STAGES, key=lambda name: seconds.get(name, 0.0))
    text = f"{largest} took {100 * seconds[largest] / trained:.0f} % of the {trained:,.0f} s of training"
    if waited < 0.02:
        return f"{text}; only {100 * waited:.1f} % was spent waiting for data."
    slowest = max(WAIT_STAGES, key=lambda name: seconds.get(name, 0.0))
    return f"{text}; {100 * waited:.0f} % was spent waiting for data, most of it for {slowest}."


@chart_style()
def _time_bars(result: dict[str, Any]) -> str:
    """Returns a bar chart of the seconds of each stage."""
    stages = [name for name in reversed(STAGES) if result["seconds"].get(name)]
    values = [result["seconds"][name] for name in stages]
    figure, axes = new_axes(5.2, 0.8 + 0.3 * len(stages))
    bars = axes.barh(stages, values, color=[ORANGE if name in WAIT_STAGES else BLUE for name in stages])
    axes.bar_label(bars, [f"{value:,.1f} s" for value in values], padding=3, color=GREY)
    axes.margins(x=0.18)
    axes.set(xlabel="seconds (orange: waiting for data)")
    return svg_data_uri(figure)


@chart_style()
def _recall_bars(result: dict[str, Any]) -> str:
    """Returns a bar chart of recall by class, the weakest first; of many classes the weakest and the five strongest."""
    recalls = sorted((value["recall"], name) for name, value in result["val"]["per_class"].items())
    if len(recalls) > 2 * MAX_MATRIX_CLASSES:
        recalls = recalls[:MAX_MATRIX_CLASSES] + recalls[-5:]
    figure, axes = new_axes(5.2, 0.8 + 0.26 * len(recalls))
    bars = axes.barh([name for _, name in recalls], [100 * recall for recall, _ in recalls], color=BLUE)
    axes.bar_label(bars, fmt="%.0f", padding=3, color=GREY)
    axes.axvline(100 * result["val"]["top1"], color=ORANGE, linestyle="--", linewidth=1)
    axes.set(xlabel="recall, % (dashed: all classes)", xlim=(0, 108))
    return svg_data_uri(figure)
