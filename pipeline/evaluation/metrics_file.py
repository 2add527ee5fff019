"""Builds the content of `metrics.json`: every number on the page and the model card of an evaluation."""

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.environment import git_commit, versions
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.row_reader import load_index
from pipeline.dataset.schema import PROVENANCE_SCHEMA
from pipeline.evaluation.analysis.leakage import without_leaked
from pipeline.evaluation.analysis.slices import make_slices, worst_slice
from pipeline.evaluation.certificate import Certificate
from pipeline.evaluation.metrics import calibration, fit_temperature, full_metrics
from pipeline.evaluation.output_files import read_kept
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.models.load import TrainedModel

_MAX_VALUES = 200  # of a column that is sliced by value: a slice for each key would hold one row


def build_metrics(
    job: EvaluateJob, data: Manifest, model: TrainedModel, certificate: Certificate, predictions: Predictions,
    columns: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of `metrics.json` for certified predictions.

    columns: of the data set's provenance, to slice by, besides class, size and brightness. The values temperature,
    robustness, sanity and label_problems are None; the analyses fill them in. Raises RecipeError for a column that does
    not exist or has too many different values.
    """
    metrics = full_metrics(predictions, data.classes)
    slices = make_slices(predictions.correct, _slice_columns(job, data, predictions, columns))
    worst = worst_slice(slices, metrics["top1"])
    whole_val = job.split == "val" and not job.first_row
    return {
        "certificate": asdict(certificate),
        "model": {
            "uri": model.uri,
            "recipe": model.recipe.name,
            "network": model.recipe.model,
            "settings": recipe_to_json(model.recipe),
            "trained_on": model.dataset_digest,
        },
        "dataset": {
            "uri": job.dataset,
            "name": data.name,
            "classes": list(data.classes),
            "rows": {name: split.rows for name, split in data.splits.items()},
            "quarantined": data.quarantined,
            "val_rule": data.val_rule,
        },
        "metrics": metrics,
        "without_leaked": without_leaked(job.dataset, data, predictions) if whole_val else None,
        "slices": [{**asdict(each), "top1": each.top1} for each in slices],
        "worst_slice": worst and {**asdict(worst), "top1": worst.top1, "below_mean": metrics["top1"] - worst.top1},
        "temperature": None,
        "robustness": None,
        "sanity": None,
        "label_problems": None,
        "decoder": job.decoder,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _slice_columns(
    job: EvaluateJob, data: Manifest, predictions: Predictions, names: tuple[str, ...]
) -> dict[str, npt.NDArray[Any]]:
    """Returns {name: values of the predicted rows} of the columns to slice by that have several values."""
    index, rows = load_index(job.dataset, data.split(job.split)), predictions.row
    columns: dict[str, npt.NDArray[Any]] = {
        "class": np.array(data.classes)[predictions.label],
        "size, px": np.sqrt(index.height[rows].astype(np.float64) * index.width[rows]).round(),
    }
    wanted = ("brightness", *names)
    if unknown := [name for name in wanted if name not in PROVENANCE_SCHEMA.names]:
        raise RecipeError(
            f"slice-by={unknown[0]}: no column of the data set's provenance; there are "
            f"{', '.join(PROVENANCE_SCHEMA.names)}"
        )
    table = read_split_provenance(job.dataset, data.split(job.split), list(dict.fromkeys(wanted)))
    for name in wanted:
        column = table[name].to_numpy()[rows]
        if not (column.dtype.kind == "f" and np.isnan(column).all()):  # an ingest without decoding leaves them empty
            columns[name] = column
        if name in names and column.dtype.kind not in "fiu" and len(set(column.tolist())) > _MAX_VALUES:
            raise RecipeError(f"slice-by={name}: has more than {_MAX_VALUES} different values; give another column")
    return {name: column for name, column in columns.items() if len(set(column.tolist())) > 1}


def calibrate(
    held_out: EvaluateJob, job: EvaluateJob, labels: npt.NDArray[np.int64], predictions: Predictions
) -> dict[str, Any]:
    """Returns a temperature fitted on held-out rows, and the calibration error and bins of `predictions` with it.

    held_out, job: two finished evaluations with keep="logits". labels: int64 [N], of the held-out rows. predictions: of
    `job`.
    """
    from scipy.special import softmax

    temperature = fit_temperature(read_kept(held_out.out).astype(np.float64), labels)
    probabilities = softmax(read_kept(job.out).astype(np.float64) / temperature, axis=1)
    after = calibration(probabilities.max(axis=1), predictions.correct)
    return {"value": temperature, "fitted_on": len(labels), "ece_after": after["ece"], "bins_after": after["bins"]}
