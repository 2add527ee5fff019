"""`result.json`: settings, scores, times and history of a finished run, from the files that training left."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.config.recipe_json import recipe_to_json
from pipeline.config.sampling import Sampling
from pipeline.core.environment import git_commit, versions
from pipeline.core.finite import finite_or_none
from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.row_reader import load_index
from pipeline.evaluation.analysis.leakage import without_leaked
from pipeline.evaluation.metrics import basic_metrics
from pipeline.evaluation.predictions import read_predictions
from pipeline.loader import stage_times
from pipeline.loader.samplers import training_split
from pipeline.loader.sampling.counts import ExpectedCounts
from pipeline.loader.sampling.mixture import ONE
from pipeline.models import checkpoint
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.resume import read_starts

RESULT_NAME = "result.json"
_DEFAULTS = asdict(Sampling())


def build_result(job: TrainJob, data: Manifest) -> dict[str, Any]:
    """Returns the content of `result.json` for a finished run whose outputs are written.

    Losses that aren't finite are None. Raises FileNotFoundError if the run isn't finished.
    """
    output = files.read_json(files.join(job.run, checkpoint.OUTPUT_NAME))
    state, operations, starts = output["state"], output["operations"], read_starts(job.run)
    parts = training_split(job.dataset, data, job.recipe, job.hold_out)
    predictions, _ = read_predictions(job.run)
    # Goodput: the share of the time since the first start that went into steps, or features. Restarts lower it.
    stepping = sum(state["seconds"].get(name, 0.0) for name in ("features", "copy", "compute"))
    trained = stage_times.training_seconds(state["seconds"])
    # Runs of earlier versions don't tell their images, which are all rows of an epoch.
    passes = 1 if job.recipe.fit_head == "only" else state["epochs"]
    images_per_second = passes * operations.get("images_per_epoch", parts.epoch_rows) / trained
    possible = operations["peak_per_second"] * operations["devices"]
    result: dict[str, Any] = {
        "dataset": {
            "name": data.name,
            "digest": data.digest,
            "rows": {name: split.rows for name, split in data.splits.items()},
            "classes": list(data.classes),
            "val_rule": data.val_rule,
        },
        "recipe": recipe_to_json(job.recipe),
        "seed": job.seed,
        "world_size": output["world_size"],
        "decoder": job.decoder,
        "epochs": state["epochs"],
        "steps": state["step"],
        "train_seconds": trained,
        "images_per_second": images_per_second,
        "data_wait_fraction": stage_times.waiting_seconds(state["seconds"]) / trained,
        "seconds": state["seconds"],
        "operations": operations,
        "utilisation": operations["per_image"] * images_per_second / possible,
        "starts": starts,
        "goodput": stepping / (time.time() - starts[0]["time"]),
        "skipped_steps": state["skipped"],
        "parameter_groups": output["parameter_groups"],
        "quarantined": quarantined(job.dataset, data, state["quarantined"]),
        "evaluated": {"split": parts.split, "held_out": job.hold_out > 0, "first_row": parts.first_row},
        "val": basic_metrics(predictions, data.classes),
        "val_without_leaked": None if job.hold_out else without_leaked(job.dataset, data, predictions),
        "history": state["history"],
        "evaluations": state["evaluations"],
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if parts.expected is not None:
        result["sampling"] = sampled_epoch(parts.expected, data, job.recipe.sampling)
    if "early_stop" in output:
        result["early_stop"] = output["early_stop"]
    finite: dict[str, Any] = finite_or_none(result)
    return finite


def sampled_epoch(expected: ExpectedCounts, data: Manifest, sampling: Sampling) -> dict[str, Any]:
    """Returns what was sampled in words, the rows of an epoch, how many different rows may come, and, unless shares of
    sources decide it, how many rows of each class are expected.
    """
    values: dict[str, Any] = {
        "said": ", ".join(f"{name}={value}" for name, value in asdict(sampling).items() if value != _DEFAULTS[name]),
        "epoch_rows": expected.num_samples,
        "different_rows": int(np.count_nonzero(expected.units)),
    }
    if expected.mixture is None:
        by_class = np.bincount(expected.groups, weights=expected.units / ONE, minlength=len(data.classes)).tolist()
        values["expected_per_class"] = {name: round(by_class[label], 3) for label, name in enumerate(data.classes)}
    return values


def quarantined(dataset: str, data: Manifest, rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Returns split, row, key and place of each image that training or evaluation left out.

    rows: (split, row) of each. The place is the shard and the row in it.
    """
    lines = []
    for split in data.splits:
        numbers = np.array([row for name, row in rows if name == split], dtype=np.int64)
        if len(numbers):
            index = load_index(dataset, data.split(split))
            keys = parquet.read_rows(dataset, data.split(split), numbers, ("key",))["key"].to_pylist()
            lines += [
                {"split": split, "row": row, "key": key, "place": index.place(row)}
                for row, key in zip(numbers.tolist(), keys, strict=True)
            ]
    return lines


def write_result(run: str, result: dict[str, Any]) -> str:
    """Writes `result.json`, the last file of a run, and returns its URI."""
    uri = files.join(run, RESULT_NAME)
    files.write_json(uri, result, pretty=True)
    return uri


def read_result(run: str) -> dict[str, Any] | None:
    """Returns the result of a finished run, or None if it isn't finished."""
    uri = files.join(run, RESULT_NAME)
    if not files.exists(uri):
        return None
    result: dict[str, Any] = files.read_json(uri)
    return result
