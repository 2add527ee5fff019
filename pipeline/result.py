"""`result.json`: what a run was and what it reached, from what it left behind."""

import importlib.metadata
import json
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import checkpoint, evaluate, shards, storage, timing
from pipeline.job import TrainJob
from pipeline.manifest import Manifest
from pipeline.rows import load_index
from pipeline.survive import read_starts
from pipeline.units import parts_of

RESULT_NAME = "result.json"
_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "scikit-learn")


def build_result(job: TrainJob, data: Manifest) -> dict[str, Any]:
    """Returns the content of `result.json` for a finished run."""
    output = json.loads(storage.read_bytes(storage.join(job.run, checkpoint.OUTPUT_NAME)))
    state, operations, starts = output["state"], output["operations"], read_starts(job.run)
    parts = parts_of(data, job.hold_out)
    predictions, _ = evaluate.read_predictions(job.run)
    stepping = sum(state["seconds"].get(name, 0.0) for name in ("copy", "compute"))
    trained = timing.training_seconds(state["seconds"])
    images_per_second = state["epochs"] * parts.train_rows / trained
    return {
        "dataset": {
            "name": data.name,
            "digest": data.digest,
            "rows": {name: split.rows for name, split in data.splits.items()},
            "classes": list(data.classes),
        },
        "recipe": asdict(job.recipe),
        "seed": job.seed,
        "world_size": output["world_size"],
        "decoder": job.decoder,
        "epochs": state["epochs"],
        "steps": state["step"],
        "train_seconds": trained,
        "images_per_second": images_per_second,
        "data_wait_fraction": timing.waiting_seconds(state["seconds"]) / trained,
        "seconds": state["seconds"],
        "operations": operations,
        "utilisation": operations["per_image"]
        * images_per_second
        / (operations["peak_per_second"] * operations["devices"]),
        "starts": starts,
        "goodput": stepping / (time.time() - starts[0]["time"]),
        "skipped_steps": state["skipped"],
        "parameter_groups": output["parameter_groups"],
        "quarantined": quarantined(job.dataset, data, state["quarantined"]),
        "evaluated": {"split": parts.split, "held_out": job.hold_out > 0, "first_row": parts.first_row},
        "val": evaluate.metrics(predictions, data.classes),
        "val_without_leaked": None if job.hold_out else without_leaked(job.dataset, data, predictions),
        "history": state["history"],
        "evaluations": state["evaluations"],
        "versions": versions(),
        "git_commit": git_commit(),
    }


def leaked_rows(dataset: str, data: Manifest) -> npt.NDArray[np.int64]:
    """Returns the rows of val that have a duplicate or near duplicate in train, by the manifest.

    None of them where they are more than half: images that simple look alike by nature, as handwritten digits do.
    """
    split = data.split("val")
    rows = shards.rows_of(dataset, split, data.leaked.get("val", ()))
    return rows if 2 * len(rows) <= split.rows else rows[:0]


def without_leaked(dataset: str, data: Manifest, predictions: evaluate.Predictions) -> dict[str, Any] | None:
    """Returns rows, correct and top1 over the val images that have no duplicate or near duplicate in train.

    None where there are none that have (`leaked_rows`).
    """
    rows = leaked_rows(dataset, data)
    clean = ~np.isin(predictions.row, rows)
    if clean.all():
        return None
    right = predictions.classes[clean, 0] == predictions.label[clean]
    correct, count = int(right.sum()), int(clean.sum())
    return {"rows": count, "correct": correct, "top1": correct / count}


def quarantined(dataset: str, data: Manifest, rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Returns split, row, key and place of each image that training or evaluation left out."""
    lines = []
    for split in data.splits:
        numbers = np.array([row for name, row in rows if name == split], dtype=np.int64)
        if len(numbers):
            index = load_index(dataset, data.split(split))
            keys = shards.read_rows(dataset, data.split(split), numbers, ("key",))["key"].to_pylist()
            lines += [
                {"split": split, "row": row, "key": key, "place": index.place(row)}
                for row, key in zip(numbers.tolist(), keys, strict=True)
            ]
    return lines


def write_result(run: str, result: dict[str, Any]) -> str:
    """Writes `result.json`, the last file of a run, and returns its URI."""
    uri = storage.join(run, RESULT_NAME)
    storage.write_bytes(uri, json.dumps(result, indent=1).encode() + b"\n")
    return uri


def read_result(run: str) -> dict[str, Any] | None:
    """Returns the result of a finished run, or None if it isn't finished."""
    uri = storage.join(run, RESULT_NAME)
    if not storage.exists(uri):
        return None
    result: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return result


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def git_commit() -> str:
    """Returns the commit of the source, with "+changes" if files differ from it, or "unknown" outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
