"""The certificate of an evaluation: a SHA-256 over the weights, the data set and the predictions.

`certify` checks that each row of the split has exactly one prediction, by the rows' keys, and that the labels are the
data set's. `verify` repeats all checks later from the files of the evaluation, and computes the metrics again.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config.choices import TestViews
from pipeline.core.errors import CertificateError
from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.row_reader import load_index
from pipeline.evaluation.metrics import full_metrics
from pipeline.evaluation.output_files import finite, read_metrics
from pipeline.evaluation.predictions import PREDICTIONS_NAME, Predictions, read_predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.models.identity import differences
from pipeline.models.load import TrainedModel
from pipeline.storage import files

_NAMED_KEYS = 5  # of each kind in an error message


@dataclass(frozen=True)
class Certificate:
    """The inputs and the result of an evaluation, with a digest over all of it.

    checkpoint_sha256: of the weights. dataset_digest: of the manifest. split, first_row, rows, views: what was
    evaluated. predictions_sha256: of `predictions.parquet`. digest: `computed_digest()`.
    """

    checkpoint_sha256: str
    dataset_digest: str
    split: str
    first_row: int
    rows: int
    views: TestViews
    predictions_sha256: str
    digest: str = ""

    def computed_digest(self) -> str:
        """Returns the SHA-256 (hex) of the canonical JSON of all fields but the digest."""
        values = {**asdict(self), "digest": ""}
        # Sorted and without spaces, so that the same fields always give the same bytes.
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_keys(keys: list[str], expected: list[str]) -> None:
    """Raises CertificateError, naming the first keys that differ, unless `keys` are `expected`, each once."""
    counts, wanted = Counter(keys), Counter(expected)
    repeated = sorted(key for key, count in counts.items() if count > max(1, wanted[key]))
    missing, foreign = sorted((wanted - counts).keys()), sorted(counts.keys() - wanted.keys())
    wrong = [("more than once", repeated), ("missing", missing), ("foreign", foreign)]
    if any(names for _, names in wrong):
        found = "; ".join(f"{kind}: {', '.join(names[:_NAMED_KEYS])} ({len(names)})" for kind, names in wrong if names)
        raise CertificateError(f"the predictions don't cover these {len(expected)} rows, each once; {found}")


def certify(job: EvaluateJob, data: Manifest, model: TrainedModel) -> tuple[Certificate, Predictions]:
    """Returns the certificate of a finished evaluation, and its predictions, after checking them against the data set.

    Raises CertificateError if a key is missing, repeated or foreign, or a label isn't the data set's.
    """
    predictions, keys = read_predictions(job.out)
    split, rows = data.split(job.split), np.array(job.row_range(data))
    expected = parquet.read_rows(job.dataset, split, rows, ("key",))["key"].to_pylist()
    check_keys(keys, expected)
    row_of = dict(zip(expected, rows.tolist(), strict=True))
    labels = load_index(job.dataset, split).label[[row_of[key] for key in keys]]
    if not np.array_equal(predictions.label, labels):
        first = int(np.flatnonzero(predictions.label != labels)[0])
        raise CertificateError(f"{keys[first]}: label {predictions.label[first]}, but {labels[first]} in the data set")
    sha256 = hashlib.sha256(files.read_bytes(files.join(job.out, PREDICTIONS_NAME))).hexdigest()
    unsigned = Certificate(model.sha256, data.digest, job.split, job.first_row, len(rows), job.views, sha256)
    return Certificate(**{**asdict(unsigned), "digest": unsigned.computed_digest()}), predictions


def verify(out: str, dataset: str, data: Manifest, model: TrainedModel) -> Certificate:
    """Returns the certificate of the evaluation in the folder `out` after repeating all checks and computing the
    metrics again.

    dataset, data: URI and manifest of the data set. Raises CertificateError if the certificate or a metric differs.
    """
    values = read_metrics(out)
    signed = Certificate(**values["certificate"])
    scope = (signed.split, signed.views, signed.first_row, signed.rows)
    found, predictions = certify(EvaluateJob(model.uri, dataset, out, *scope), data, model)
    method = values["metrics"].get("interval_method", "bootstrap")
    answers = tuple(values["dataset"]["classes"])  # more than the data set's, of a model that knows others, too
    classes = answers if answers[: len(data.classes)] == data.classes else data.classes
    metrics = finite(full_metrics(predictions, classes, method=method))
    # The metrics are not part of the digest; an edited number is found by computing it again.
    different = list(differences(asdict(signed), asdict(found)))
    different += differences(_rounded(finite(values["metrics"])), _rounded(metrics))
    if different:
        raise CertificateError(f"{out}: the certificate doesn't hold: {'; '.join(different[:3])}")
    return found


def _rounded(values: Any) -> Any:
    """Returns the values with floats rounded: the last digits of a sum may differ from one kind of CPU to another."""
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 9) if isinstance(values, float) else values
