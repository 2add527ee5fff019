"""Result files of a batch prediction: `part-NNNNNN.parquet` with a row for each image, and `predictions.json`."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.choices import TestViews
from pipeline.core.errors import ExactnessError
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.storage import files

SUMMARY_NAME = "predictions.json"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the image's name below the input
        ("class", pa.string()),  # the best one; null where there is an error
        ("probability", pa.float32()),
        ("classes", pa.list_(pa.string())),  # up to five, best first
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),  # why the image cannot be used, or null
    ]
)
SECONDS = pa.field("seconds", pa.float32())  # of the network, for an image of its unit; only where the job is recorded
CONTENT = pa.field("content", pa.string())  # hash of the image's bytes, null for none; only where the job is recorded
_FIRST_ERRORS = 5


@dataclass(frozen=True)
class PredictResult:
    """Summary of a batch prediction."""

    images: int
    unusable: int  # images that could not be read or decoded
    skipped: int  # files that are no images
    per_class: dict[str, int]  # images predicted as each class
    first_errors: tuple[str, ...]  # "NAME: REASON" of the first unusable images
    seconds: float  # of this call
    predicted_now: int  # images predicted in this call; the others were finished before
    model: str  # recipe and network
    views: TestViews  # test views of each image
    out: str  # URI of the folder of results
    skipped_kinds: dict[str, int] = field(default_factory=dict)  # `skipped` by kind, such as {".txt": 3}


def unit_table(job: PredictJob, unit: int, row: dict[str, npt.NDArray[Any]]) -> pa.Table:
    """Returns the lines of a unit with the columns of SCHEMA and, if asked for, SECONDS and CONTENT.

    row: of `PredictWorker`.
    """
    errors: list[str] = json.loads(row["error"][0])
    classes = np.array(job.model.classes, dtype=object)[row["classes"][0]].tolist()
    probabilities = row["probabilities"][0].tolist()

    def usable(values: list[Any]) -> list[Any]:
        return [None if error else value for value, error in zip(values, errors, strict=True)]

    columns = {
        "key": job.unit(unit)["name"].combine_chunks(),
        "class": usable([line[0] for line in classes]),
        "probability": usable([line[0] for line in probabilities]),
        "classes": usable(classes),
        "probabilities": usable(probabilities),
        "error": [error or None for error in errors],
    }
    table = pa.table(columns, schema=SCHEMA)
    if job.recorded:
        seconds = [float(row["seconds"][0]) / len(errors)] * len(errors)
        table = table.append_column(SECONDS, pa.array(seconds, SECONDS.type))
        table = table.append_column(CONTENT, pa.array(json.loads(row["content"][0]), CONTENT.type))
    return table


def write_summary(job: PredictJob, seconds: float, predicted_now: int) -> PredictResult:
    """Returns the summary of all parts, those of earlier calls included, after writing `predictions.json`.

    Raises ExactnessError unless the parts have a row for every image.
    """
    per_class = dict.fromkeys(job.model.classes, 0)
    images, unusable, first = 0, 0, list[str]()
    for part in job.parts:
        table = pa.parquet.read_table(pa.BufferReader(files.read_bytes(job.part_uri(part))))
        images += table.num_rows
        for line in pa.compute.value_counts(table["class"].drop_null()).to_pylist():
            per_class[line["values"]] += line["counts"]
        wrong = table.filter(table["error"].is_valid())
        unusable += wrong.num_rows
        named = wrong.slice(0, _FIRST_ERRORS).select(["key", "error"]).to_pydict()
        first += [f"{key}: {error}" for key, error in zip(*named.values(), strict=True)]
    if images != job.images.num_rows:
        raise ExactnessError(f"{job.out}: {images:,} rows for {job.images.num_rows:,} images; remove it and run again")
    summary = {
        **job.plan(),
        "model_uri": job.model.uri,
        "images_count": images,
        "unusable": unusable,
        "per_class": per_class,
    }
    files.write_json(files.join(job.out, SUMMARY_NAME), summary, pretty=True)
    return PredictResult(
        images, unusable, sum(job.skipped.values()), per_class, tuple(first[:_FIRST_ERRORS]), seconds, predicted_now,
        job.model.name, job.views, job.out, job.skipped,
    )  # fmt: skip
