"""Predicts with the model that an alias names, and with another one in its shadow, and stores what both answered."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.config.choices import TestViews
from pipeline.core.errors import RegistryError
from pipeline.core.progress import Progress, silent
from pipeline.dataset.parquet import read_table
from pipeline.evaluation.batch_predict.job import PredictJob
from pipeline.evaluation.batch_predict.model_failures import model_failure, tagged
from pipeline.evaluation.batch_predict.results import CONTENT, SECONDS, PredictResult
from pipeline.evaluation.batch_predict.run import claim, prepared_job, run_prediction
from pipeline.evaluation.inputs import StrPath, Workers
from pipeline.models.load import find_model
from pipeline.retraining import registry
from pipeline.retraining.live import store
from pipeline.retraining.live.candidates import pending_candidate
from pipeline.storage import files

log = logging.getLogger(__name__)

PREVIOUS = "previous"
SHADOW_FOLDER = "_shadow"  # readers of Parquet folders leave out names that begin with _


@dataclass(frozen=True)
class LiveModels:
    """Which models answer."""

    registry: str
    """URI of the registry."""
    alias: str = "champion"
    """Alias, or ID, of the version whose answers are given out."""
    shadow: str | None = None
    """Version that answers in its shadow: "candidate", "previous" for the version before the champion, another alias,
    or an ID; None for none. Without a candidate, or a version before, the first one answers alone."""
    record: bool = True
    """Whether the answers are stored below the registry."""


@dataclass(frozen=True)
class LivePrediction:
    """What came of a prediction by alias."""

    result: PredictResult
    """Of the version whose answers are given out."""
    version: str
    """Its ID."""
    shadow: str | None = None
    """ID of the version in its shadow, None if none answered."""
    failure: str = ""
    """Why the version in the shadow gave no answers."""
    record: str | None = None
    """URI of the record, None if none was asked for."""


def predict_live(
    models: LiveModels,
    input: StrPath | Sequence[StrPath],
    out: StrPath,
    views: TestViews | None = None,
    workers: Workers | int | None = None,
    progress: Progress = silent,
) -> LivePrediction:
    """Predicts as `predict`, with the version that an alias names; then with the one in its shadow, and records both.

    The answers at `out` are complete before the other version begins. Its own go to OUT/_shadow/VERSION and into the
    record. A failure of the version itself is recorded and raises nothing: its files are damaged, or its network fails.
    The same call continues an interrupted one, as long as the alias names the same version.

    Raises what `predict` raises, and RegistryError if there is no such version. If the first version fails by itself,
    that is recorded, too. What the machine, the cluster or a storage fails in says nothing of a version: it is raised,
    and never recorded.
    """
    first, second = _versions(models)
    with prepared_job(registry.version_uri(models.registry, first), input, out, views, workers, progress) as job:
        job = replace(job, recorded=models.record)
        name = record_name(job, first, second)
        head = store.Traffic(first, second or store.ALONE, time.time())
        claim(job)  # before the block: other predictions at `out` aren't the model's failure
        try:
            result = run_prediction(job, progress)
        except Exception as error:  # raised again: a failure of the model itself is recorded first
            failure = model_failure(error)
            if models.record and failure is not None:
                failed = replace(head, second=store.ALONE, first_failure=_text(failure))
                store.write_traffic(models.registry, f"{name}-failed", failed, _unanswered(job))
            raise
        if not models.record:
            return LivePrediction(result, first)
        place = store.traffic_uri(models.registry, head.first, head.second, name)
        if not files.exists(place):
            shadow = None
            if second:
                uri = registry.version_uri(models.registry, second)
                shadow, failure_text = _answer_in_shadow(job, uri, views, progress)
                head = replace(head, second_failure=failure_text)
            store.write_traffic(models.registry, name, head, _parts(job, shadow))
        return LivePrediction(result, first, second, store.read_traffic(place)[0].second_failure, place)


def record_name(job: PredictJob, first: str, second: str | None) -> str:
    """Returns the ID of a record: a hash of images, views, place of the answers and both versions."""
    identity = json.dumps([job.plan(), job.out, first, second], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _versions(models: LiveModels) -> tuple[str, str | None]:
    """Returns the IDs of both versions; None for a second one that isn't there or is the first."""
    place = models.registry
    first = registry.get(place, models.alias).id
    if models.shadow is None:
        return first, None
    if models.shadow == registry.CANDIDATE:
        move = pending_candidate(place)
    elif models.shadow == PREVIOUS:
        champion = registry.current(place, registry.CHAMPION)
        if champion is None:
            raise RegistryError(f"shadow={PREVIOUS}: nothing was ever champion in {place}; give a version")
        move = registry.previous(place, champion)
    else:
        second = registry.get(place, models.shadow).id
        return first, second if second != first else None
    return first, move.version if move is not None and move.version != first else None


def _answer_in_shadow(
    job: PredictJob, uri: str, views: TestViews | None, progress: Progress
) -> tuple[PredictJob | None, str]:
    """Predicts the job's images with another version, and returns (its job, why it failed).

    The job is None if there is no model to be loaded; the reason is "" if nothing failed. Each version has a folder of
    its own, whose plan is that of the job. Raises what isn't the version's failure; the same call continues then.
    """
    try:
        with tagged():
            model = find_model(uri)
        out = files.join(job.out, SHADOW_FOLDER, files.basename(uri))
        shadow = replace(job, model=model, out=out, views=views or model.recipe.test_views, skipped={})
    except Exception as error:
        return None, _failed(error)
    claim(shadow)
    try:
        run_prediction(shadow, lambda stage, *rest: progress(f"shadow: {stage}", *rest))
    except Exception as error:
        return shadow, _failed(error)
    return shadow, ""


def _failed(error: Exception) -> str:
    """Returns the text of a failure of the version in the shadow. Raises `error` if it isn't one."""
    failure = model_failure(error)
    if failure is None:
        log.warning("warning: the answers are complete; no answer in the shadow, by no fault of that version")
        raise error
    log.warning("warning: the version in the shadow failed (%s); the answers are complete", _text(failure))
    return _text(failure)


def _text(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _parts(job: PredictJob, shadow: PredictJob | None) -> Iterator[pa.Table]:
    """Yields the rows of a record, part by part of the answers. shadow: the other version's job, claimed."""
    for part in job.parts:
        first = _answers(job.part_uri(part))
        columns = {"key": first["key"], "first": first["class"], "first_seconds": first["seconds"]}
        second = _answers(shadow.part_uri(part)) if shadow and files.exists(shadow.part_uri(part)) else None
        columns["second"] = second["class"] if second else pa.nulls(first.num_rows, pa.string())
        columns["second_seconds"] = second["seconds"] if second else pa.nulls(first.num_rows, pa.float32())
        columns |= {"error": first["error"], "content": first["content"]}
        yield pa.table(columns).select(store.SCHEMA.names)


def _answers(uri: str) -> pa.Table:
    """Returns the columns key, class, seconds, error and content of a part; nulls for those that a part hasn't.

    A class whose probability isn't finite is no answer.
    """
    table = read_table(uri)
    finite = np.isfinite(table["probability"].fill_null(0.0).to_numpy())
    classes = pa.compute.if_else(pa.array(finite), table["class"], pa.scalar(None, pa.string()))
    for field in (SECONDS, CONTENT):
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    same = {name: table[name] for name in ("key", "seconds", "error", "content")}
    return pa.table({**same, "class": classes})


def _unanswered(job: PredictJob) -> Iterator[pa.Table]:
    """Yields the rows of a record of a first version that failed: no answer for any image."""
    rows = job.images.num_rows
    yield pa.table(
        {
            field.name: job.images["name"].combine_chunks() if field.name == "key" else pa.nulls(rows, field.type)
            for field in store.SCHEMA
        }
    )
