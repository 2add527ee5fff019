"""Certified evaluations: a row that is missing, repeated or foreign is named, and so is what was changed afterwards."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import CertificateError, CheckpointError, RecipeError
from pipeline.dataset import manifest
from pipeline.evaluation import verify
from pipeline.evaluation.certificate import Certificate, certify
from pipeline.evaluation.certificate import verify as verify_model
from pipeline.evaluation.metrics_file import build_metrics
from pipeline.evaluation.runner import EvaluateJob
from pipeline.models.load import find_model


def rewrite(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replaces the predictions in the folder `out` by `change` of them."""
    place = out / "predictions.parquet"
    pq.write_table(change(pq.read_table(place)), place)


@pytest.fixture
def copied(evaluation: str, tmp_path: Path) -> Path:
    """A copy of the shared evaluation that a test may change."""
    return Path(shutil.copytree(evaluation, tmp_path / "evaluation"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pa.concat_tables([t, t.slice(5, 1)]), r"more than once: \S+ \(1\)"),
        (lambda t: t.slice(1), r"missing: \S+ \(1\)"),
        (
            lambda t: t.set_column(1, "key", pa.array(["other.png", *t["key"].to_pylist()[1:]])),
            r"missing: \S+ \(1\); foreign: other.png \(1\)",
        ),
        (
            lambda t: t.set_column(
                2, "label", pa.array([(t["label"][0].as_py() + 1) % 10, *t["label"].to_pylist()[1:]])
            ),
            r"label \d, but \d in the data set",
        ),
    ],
)
def test_a_row_too_many_too_few_or_foreign_is_refused_by_name(
    trained: str, digits_dataset: str, copied: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    rewrite(copied, change)
    with pytest.raises(CertificateError, match=message):
        certify(EvaluateJob(trained, digits_dataset, str(copied)), manifest.load(digits_dataset), find_model(trained))


def test_what_was_changed_after_signing_is_found(trained: str, digits_dataset: str, copied: Path) -> None:
    data, model = manifest.load(digits_dataset), find_model(trained)
    place = copied / "metrics.json"
    values = json.loads(place.read_text())
    signed = Certificate(**values["certificate"])
    assert verify(copied) == signed
    with pytest.raises(CertificateError, match="checkpoint_sha256 was"):
        verify_model(str(copied), digits_dataset, data, replace(model, sha256="0" * 64))
    place.write_text(json.dumps({**values, "metrics": {**values["metrics"], "top1": 0.999}}))
    with pytest.raises(CertificateError, match=r"top1 was 0\.999"):
        verify(copied)
    place.write_text(json.dumps({**values, "certificate": asdict(replace(signed, views="flip"))}))
    with pytest.raises(CertificateError, match="digest was"):
        verify(copied)
    place.write_text(json.dumps(values))
    rewrite(copied, lambda t: t.set_column(5, "loss", pa.array(np.zeros(t.num_rows))))
    with pytest.raises(CertificateError, match="predictions_sha256 was"):
        verify(copied)
    with pytest.raises(CheckpointError, match=r"no metrics\.json; give the folder of an evaluation"):
        verify(copied.parent)


def test_columns_to_slice_by_that_do_not_work_are_refused(trained: str, digits_dataset: str, evaluation: str) -> None:
    job, data, model = (
        EvaluateJob(trained, digits_dataset, evaluation), manifest.load(digits_dataset), find_model(trained)
    )  # fmt: skip
    signed, predictions = certify(job, data, model)
    with pytest.raises(RecipeError, match="slice-by=colour: no column"):
        build_metrics(job, data, model, signed, predictions, ("colour",))
    with pytest.raises(RecipeError, match="slice-by=pixel_sha256: has more than"):
        build_metrics(job, data, model, signed, predictions, ("pixel_sha256",))
