"""An evaluation that can be signed: each row of a split once, checked by its key, under one digest.

What it leaves: `predictions.parquet`, a line for every row, and `metrics.json`, whose certificate is a SHA-256 over the
weights, the data set and the predictions. `verify` repeats all of its checks from those files.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.cluster.ray_tasks import ray_runs
from pipeline.config.recipe import TestViews
from pipeline.core.errors import CertificateError, CheckpointError, RecipeError
from pipeline.core.progress import Progress, silent
from pipeline.dataset import manifest, parquet
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.row_reader import load_index
from pipeline.evaluation import metrics
from pipeline.evaluation import predictions as evaluate
from pipeline.evaluation.analysis.corruptions import CORRUPTIONS, Tally
from pipeline.evaluation.predictions import PREDICTIONS_NAME, Kept, Predictions, read_predictions
from pipeline.loader import api as loader
from pipeline.loader.api import Batch
from pipeline.loader.decode import DecoderName, best_decoder
from pipeline.loader.transform import View, evaluation_view
from pipeline.loader.work_units import EvaluateUnits, parts_of
from pipeline.models import checkpoint
from pipeline.models.batch_transforms import Normalise
from pipeline.models.load import Model, check_classes, find_model, load_net
from pipeline.storage import files

METRICS_NAME, KEPT_NAME, ROBUSTNESS_NAME = "metrics.json", "kept.npy", "robustness.json"
HELD_OUT = "held-out"


# --- evaluating --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation. num_workers 0 means in this process; rows: of the split from first_row on; 0 for all.

    severities: also counts right answers under every corruption at these (`robustness.json`), on the first
    `robustness_rows` rows, 0 for all. keep: also writes
    `kept.npy`, float32 [rows, M]: logits, or what the last layer gets.
    """

    checkpoint: str
    dataset: str
    out: str
    split: str = "val"
    views: TestViews = "none"
    first_row: int = 0
    rows: int = 0
    num_workers: int = 0
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    severities: tuple[int, ...] = ()
    robustness_rows: int = 0
    keep: Kept = "nothing"
    decoder: DecoderName = field(default_factory=best_decoder)
    progress: Progress = silent

    def num_rows(self, data: Manifest) -> int:
        """Rows that are evaluated. Raises RecipeError where there are none."""
        there = data.split(self.split).rows - self.first_row
        if not 0 <= self.rows <= there:
            raise RecipeError(f"rows={self.rows} from {self.first_row} on: {self.split} has {there} of them")
        return self.rows or there


def split_rows(name: str, data: Manifest, model: Model) -> tuple[str, int, int]:
    """Returns (split, first row, rows) of a split or of "held-out", what the model's run kept of train.

    Raises RecipeError where it kept nothing, DatasetError for an unknown split.
    """
    if name != HELD_OUT:
        return name, 0, data.split(name).rows
    if not model.hold_out:
        raise RecipeError(f"split={HELD_OUT}: the run trained on all of train; train one with --hold-out 0.1")
    if model.dataset_digest != data.digest:
        raise RecipeError(f"split={HELD_OUT}: the run trained on another data set; give its own with --data")
    parts = parts_of(data, model.hold_out)
    return parts.split, parts.first_row, parts.rows


def run(job: EvaluateJob) -> None:
    """Evaluates; returns when `predictions.parquet` lies at `job.out`. Needs Ray where there are workers."""
    if not job.num_workers:
        _evaluate(job, 0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    import ray.train
    import ray.train.torch

    from pipeline.cluster.ray_train import fit, scaling

    filesystem, path = files.open_filesystem(job.out)
    fit(
        ray.train.torch.TorchTrainer(
            evaluate_loop,
            train_loop_config={"job": job},
            scaling_config=scaling(job.num_workers, job.use_gpu, job.cpus_per_worker),
            run_config=ray.train.RunConfig(
                name=path.rsplit("/", 1)[1], storage_path=path.rsplit("/", 1)[0], storage_filesystem=filesystem
            ),
        )
    )


def evaluate_loop(config: dict[str, Any]) -> None:
    """What each worker runs. config: {"job": EvaluateJob}."""
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config["job"].cpus_per_worker)))
    _evaluate(config["job"], context.get_world_rank(), context.get_world_size(), device)
    ray.train.report({})  # a barrier: no worker leaves before the predictions are there


def _evaluate(job: EvaluateJob, rank: int, world_size: int, device: torch.device) -> None:
    data, model = manifest.load(job.dataset), find_model(job.checkpoint)
    check_classes(model, data.classes)
    recipe, count = model.recipe, job.num_rows(data)
    net, normalise = load_net(model).to(device), Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
    units = EvaluateUnits(count, evaluate.UNIT_ROWS, world_size, rank, job.first_row)
    view = evaluation_view(recipe, job.decoder)
    batches: Iterable[Batch] = _batches(job, data, units, view, job.progress if rank == 0 else silent, device)
    tally = Tally(job.severities, job.first_row + (job.robustness_rows or count))
    if job.severities:
        batches = tally.through(batches, net, normalise)
    part = evaluate.predict(net, batches, normalise, len(data.classes), recipe.loss, job.views, job.keep)
    parts: list[Any] = [(part, tally)]
    if world_size > 1:
        parts = [None] * world_size
        torch.distributed.all_gather_object(parts, (part, tally))
    if rank == 0:
        predictions = evaluate.merge([part for part, _ in parts], count, first_row=job.first_row)
        evaluate.write_predictions(job.out, job.dataset, data.split(job.split), predictions)
        if job.keep != "nothing":
            out = io.BytesIO()
            np.save(out, predictions.kept, allow_pickle=False)
            files.write_bytes(files.join(job.out, KEPT_NAME), out.getvalue())
        if job.severities:
            _write_robustness(job, [tally for _, tally in parts], view.size_px)


def _batches(
    job: EvaluateJob, data: Manifest, units: EvaluateUnits, view: View, progress: Progress, device: torch.device
) -> Iterator[Batch]:
    load = loader.stream_batches if ray_runs() else loader.direct_batches
    for batch in load(job.dataset, data.split(job.split), units, view):
        yield batch.to(device)
        progress("evaluate", batch.unit + 1, len(units))


def _write_robustness(job: EvaluateJob, tallies: list[Tally], size_px: int) -> None:
    whole = tallies[0]
    for other in tallies[1:]:
        whole.add(other)
    lines = [
        {
            "corruption": name,
            "severity": severity,
            "strength": CORRUPTIONS[name].strength(severity, size_px) if severity else 0.0,
            "correct": right,
            "rows": whole.rows,
        }
        for (name, severity), right in whole.right.items()
    ]
    files.write_json(files.join(job.out, ROBUSTNESS_NAME), lines, pretty=True)


def read_robustness(out: str) -> list[dict[str, Any]]:
    """Returns `robustness.json`: corruption, severity, strength, correct and rows of each."""
    lines: list[dict[str, Any]] = files.read_json(files.join(out, ROBUSTNESS_NAME))
    return lines


def read_kept(out: str) -> npt.NDArray[np.float32]:
    """Returns `kept.npy`, float32 [rows, M], in the order of the predictions."""
    kept: npt.NDArray[np.float32] = np.load(
        io.BytesIO(files.read_bytes(files.join(out, KEPT_NAME))), allow_pickle=False
    )
    return kept


# --- the certificate ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """What an evaluation rests on; digest: a SHA-256 over all of it."""

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
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_keys(keys: list[str], expected: list[str]) -> None:
    """Raises CertificateError, by name, unless `keys` are those expected, each once."""
    counts, due = Counter(keys), Counter(expected)
    doubled = sorted(key for key, count in counts.items() if count > max(1, due[key]))
    missing, foreign = sorted((due - counts).keys()), sorted(counts.keys() - due.keys())
    wrong = [("more than once", doubled), ("missing", missing), ("foreign", foreign)]
    if any(names for _, names in wrong):
        said = "; ".join(f"{what}: {', '.join(names[:5])} ({len(names)})" for what, names in wrong if names)
        raise CertificateError(f"the evaluation isn't one of these {len(expected)} rows: {said}")


def certify(job: EvaluateJob, data: Manifest, model: Model) -> tuple[Certificate, Predictions]:
    """Checks what was evaluated against the data set, row by row, and returns its certificate and the predictions.

    Raises CertificateError if a key is missing, doubled or foreign, or a label isn't the data set's.
    """
    predictions, keys = read_predictions(job.out)
    split, count = data.split(job.split), job.num_rows(data)
    rows = np.arange(job.first_row, job.first_row + count)
    expected = parquet.read_rows(job.dataset, split, rows, ("key",))["key"].to_pylist()
    check_keys(keys, expected)
    labels = load_index(job.dataset, split).label
    at = dict(zip(expected, rows.tolist(), strict=True))
    theirs = labels[[at[key] for key in keys]]
    if not np.array_equal(predictions.label, theirs):
        first = int(np.flatnonzero(predictions.label != theirs)[0])
        raise CertificateError(f"{keys[first]}: label {predictions.label[first]}, the data set says {theirs[first]}")
    sha256 = hashlib.sha256(files.read_bytes(files.join(job.out, PREDICTIONS_NAME))).hexdigest()
    unsigned = Certificate(model.sha256, data.digest, job.split, job.first_row, count, job.views, sha256)
    return Certificate(**{**asdict(unsigned), "digest": unsigned.computed_digest()}), predictions


def read_metrics(out: str) -> dict[str, Any]:
    """Returns the content of `metrics.json`. Raises CheckpointError if there is none."""
    place = files.join(out, METRICS_NAME)
    if not files.exists(place):
        raise CheckpointError(f"{out}: no {METRICS_NAME}; give a folder that jobs/evaluate.py wrote")
    values: dict[str, Any] = files.read_json(place)
    return values


def write_metrics(out: str, values: dict[str, Any]) -> None:
    """Writes `metrics.json`."""
    files.write_json(files.join(out, METRICS_NAME), values, pretty=True)


def verify(out: str, dataset: str, data: Manifest, model: Model) -> Certificate:
    """Repeats all checks of the evaluation at `out`, its metrics included.

    Raises CertificateError if the certificate or a number doesn't hold.
    """
    values = read_metrics(out)
    signed = Certificate(**values["certificate"])
    place = (signed.split, signed.views, signed.first_row, signed.rows)
    job = EvaluateJob(model.uri, dataset, out, *place)
    found, predictions = certify(job, data, model)
    again = metrics.summary(predictions, data.classes)
    different = list(checkpoint.differences(asdict(signed), asdict(found)))
    different += checkpoint.differences(_rounded(values["metrics"]), _rounded(again))
    if different:
        raise CertificateError(f"{out}: the certificate doesn't hold: {'; '.join(different[:3])}")
    return found


def _rounded(values: Any) -> Any:
    """Sums of floats may differ in their last digits from one kind of CPU to another."""
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 9) if isinstance(values, float) else values
