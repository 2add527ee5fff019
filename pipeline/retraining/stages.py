"""The stages of a retraining run: ingest, train, evaluate, drift, and the decision with its pages."""

import functools
import json
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest, is_dataset
from pipeline.evaluation.comparison import compare_predictions
from pipeline.evaluation.inputs import Workers
from pipeline.evaluation.pages.comparison import write_comparison
from pipeline.evaluation.pages.report import write_report
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.evaluation.significance import CONFIDENCE, paired_bounds
from pipeline.evaluation.workers import evaluation_session
from pipeline.ingestion.api import ingest
from pipeline.ingestion.changes.onto import edits_by_people, why_compact
from pipeline.ingestion.plan import IngestSettings
from pipeline.ingestion.sources import Source
from pipeline.models import checkpoint
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.models.class_lists.network import carry_over
from pipeline.models.load import find_model
from pipeline.models.tensor_file import serialize_tensors
from pipeline.retraining import registry
from pipeline.retraining.budget import Budget
from pipeline.retraining.classes import ClassRules, as_json, change_text
from pipeline.retraining.decision import promotion
from pipeline.retraining.decision.data_changes import data_changes
from pipeline.retraining.decision.drift import Drift, data_drift
from pipeline.retraining.decision.lock_box import Reading, read_lock_box, warn_of_empty, with_reading
from pipeline.retraining.decision.promotion_gate import Decision
from pipeline.retraining.decision.sequential import NightLevel, take_level
from pipeline.retraining.decision.stop import publish_stop
from pipeline.retraining.plan import Plan, RetrainOptions
from pipeline.retraining.replay import with_replay
from pipeline.retraining.workspace import (
    ACTIVE_NAME,
    RetrainingRun,
    latest_dataset,
    publish,
    read_latest,
    with_registry,
)
from pipeline.storage import files
from pipeline.storage.lease import Lease
from pipeline.training.job import Weights, weights_of
from pipeline.training.workflow import make_job, train_job
from pipeline.versions.compaction import compacted_beside
from pipeline.versions.family import Member, read_member

log = logging.getLogger(__name__)

CHAMPION_FOLDER, CHALLENGER_FOLDER = "champion", "challenger"
LATENCY_NAME = "latency.json"
"""File in a run's folder: the seconds per image by which it decides."""
START_NAME = "start.safetensors"
"""File in the folder of a run's training: the champion's weights with a last layer for other classes."""


def ingest_source(run: RetrainingRun, options: RetrainOptions, progress: Progress) -> Manifest:
    """Ingests a run's source unless its data set is there: what is new since the newest finished run, where it can.

    Returns the manifest.
    """
    if not is_dataset(run.dataset):
        columns = (options.image_column, options.label_column)
        source = Source(
            run.source, options.layout, options.md5, options.val_share, *columns, test_share=run.gate.lock_box
        )
        onto = _parent_of(run)
        ingest(source, run.dataset, max_quarantined=options.max_quarantined, onto=onto, progress=progress)
    return manifest.load(run.dataset)


def _parent_of(run: RetrainingRun) -> str | None:
    """Returns the data set of the newest finished run, None if there is none or all is better written anew.

    A version of many small steps is compacted first, beside it: that reads stored bytes and decodes nothing.
    """
    uri = latest_dataset(run.workspace, read_latest(run.workspace))
    latest_data = read_member(uri) if uri and uri != run.dataset else None
    if latest_data is None:
        return None
    uri = _as_corrected(latest_data)
    if not is_dataset(uri):  # was dropped, and nobody has corrected it
        return None
    stored = manifest.load_stored(uri)
    if stored.sources:
        return None
    is_like_new = stored.settings == json.loads(json.dumps(asdict(IngestSettings())))
    is_edited = bool(edits_by_people(uri, stored))
    if why_compact(stored) and (is_like_new or is_edited) and stored.version is not None and stored.version.parent:
        return compacted_beside(uri)
    return uri if (is_like_new and not why_compact(stored)) or is_edited else None


def _as_corrected(latest: Member) -> str:
    """Returns the version beside a data set in which people have corrected it last; the data set itself if none has.

    latest: may be dropped. Of several corrections of the same data set none is taken, unless one holds the edits of all
    others: they should follow each other.
    """
    folder = files.resolve(latest.uri, "../")
    beside = [files.join(folder, name) for name in files.list_directories(folder)]
    versions = {each: manifest.load_stored(each) for each in beside if is_dataset(each)}
    versions[latest.uri] = latest.manifest
    digests = {data.digest for data in versions.values()}

    @functools.cache
    def edits_of(uri: str) -> frozenset[tuple[str, str, str]]:
        return frozenset(edits_by_people(uri, versions[uri]))

    def last(uri: str) -> str:
        stored = versions[uri]
        is_gone = uri == latest.uri and latest.dropped
        known = frozenset[tuple[str, str, str]]() if is_gone else edits_of(uri)
        following = [each for each, data in versions.items() if _follows(data, stored, digests)]
        # The data set of a run that wasn't finished follows, too: people have changed nothing there.
        said = {edits_of(end): end for end in map(last, following)}
        ends = [end for edits, end in said.items() if edits != known and not any(edits < other for other in said)]
        if len(ends) > 1:
            log.warning("warning: %s are corrections of one data set, %s; none is used", ", ".join(ends), uri)
        return ends[0] if len(ends) == 1 else uri

    return last(latest.uri)


def _follows(data: Manifest, stored: Manifest, digests: set[str]) -> bool:
    """Whether a version was made of a data set, of the same source. digests: of the data sets that are there.

    A version whose parent was dropped follows those whose shards it refers to.
    """
    version = data.version
    if version is None or data.source_digest != stored.source_digest:
        return False
    if version.parent in digests:
        return version.parent == stored.digest
    return stored.digest in {base.digest for base in version.bases.values()}


class Stages:
    """Runs the stages of one plan. Each starts only while the lease is held and the budget lasts, and can be repeated.

    held: the lease of the workspace. budget: the run's time budget. progress: called with the progress of each stage.
    """

    def __init__(self, plan: Plan, options: RetrainOptions, held: Lease, budget: Budget, progress: Progress) -> None:
        assert plan.settings is not None
        self._plan, self._run, self._settings, self._options = plan, plan.run, plan.settings, options
        self._lease, self._budget, self._progress = held, budget, progress
        self._seconds = dict(plan.seconds)
        self._replay: dict[str, Any] | None = None  # the rows of an epoch, where old ones are a share of it
        self._class_map: ClassMap | None = None  # the champion's classes in the data set, once that is there

    def run(self) -> dict[str, Any]:
        """Runs all stages and returns the content of `decision.json`. Raises what the stages raise."""
        run = self._run
        # Taken first: from here on no process that was started earlier can move the champion.
        fence = registry.take_fence(run.registry, registry.CHAMPION)
        with self._stage("ingest"):
            data = ingest_source(run, self._options, self._progress)
        rows = ", ".join(f"{split.rows:,} {name}" for name, split in data.splits.items())
        log.info("data set %s: %s, %d classes, digest %s", data.name, rows, len(data.classes), data.digest[:16])
        earlier = promotion.earlier_datasets(run)
        self._compare_classes(data, earlier)
        drift = self._drift_before_training(earlier)
        if drift and drift.warnings and not self._options.force:
            return self._stop(drift, data)
        warn_of_empty(run, data, earlier, self._class_map)
        with self._stage("train"):
            self._train(earlier)
        with self._evaluation_session() as job:
            with self._stage("evaluate"):
                champion, challenger, values = self._evaluate(job)
            with self._stage("drift"):
                if earlier and drift is None:
                    drift = self._measure_drift(earlier, job)
        unseen = promotion.unseen_rows(run.dataset, data, earlier)
        contest = promotion.Contest(champion, challenger, data.classes, unseen, self._class_map)
        latency, night = self._latency(), self._night_level()
        gate = replace(run.gate, night_level=night.level) if night else run.gate
        decision = promotion.decide_promotion(contest, gate, latency, run.classes)
        version = self._add_version()
        decision, reading = self._confirm(decision, version.id, data, earlier)
        details = {
            "fair_rows": int(contest.rows.sum()),
            "rows": len(unseen),
            "drift": drift and drift.as_json(),
            "sequential": night and night.as_json(),
            "lock_box": reading and reading.as_json(),
            "gain": _gain(contest),
            **self._details(data),
            **self._write_pages(data, challenger, values),
        }
        self._lease.check()
        return publish(run, decision, version.id, fence, details, self._alias)

    @property
    def _alias(self) -> str:
        """The alias that a challenger gets which passes."""
        return registry.CANDIDATE if self._options.shadow else registry.CHAMPION

    def _compare_classes(self, data: Manifest, earlier: list[str]) -> None:
        """Finds the champion's classes in the data set.

        Raises DatasetError if one has vanished; the run isn't an interrupted one then: once the class is back, there is
        nothing to do.
        """
        try:
            found = promotion.compare_with_champion(self._run, data, self._options.classes, earlier)
        except DatasetError:
            files.delete_files(self._run.workspace, [ACTIVE_NAME])
            raise
        self._class_map = found
        if found and (changed := change_text(found)):
            log.info("classes since the champion: %s", changed)

    def _class_details(self) -> dict[str, Any]:
        """Returns what `decision.json` says of classes: nothing where none has changed."""
        found = self._class_map and as_json(self._class_map, self._run.classes or ClassRules())
        return {"classes": found} if found else {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Measures the seconds of a stage. Raises BudgetError or DatasetError instead of starting it."""
        self._budget.check()
        self._lease.check()
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def _evaluation_session(self) -> AbstractContextManager[EvaluateJob]:
        training = self._options.training
        workers = Workers(self._options.workers, training.device, training.wait_minutes)
        return evaluation_session(EvaluateJob("", "", ""), workers, self._progress)

    def _drift_before_training(self, earlier: list[str]) -> Drift | None:
        """Returns the drift if it may stop the run: without the champion's features if the rest stops it already.

        None without a champion on another data set, or if drift only warns: it is measured beside the evaluations then,
        which saves the start of their workers. earlier: as from `promotion.earlier_datasets`.
        """
        if not earlier or self._options.on_drift == "warn":
            return None
        with self._stage("drift"):
            drift = data_drift(earlier[0], self._run.dataset, self._options.drift, self._class_map)
            if drift.warnings and not self._options.force:
                return drift
            with self._evaluation_session() as job:
                return promotion.measure_drift(self._run, earlier[0], job, drift, self._known_classes())

    def _measure_drift(self, earlier: list[str], job: EvaluateJob) -> Drift:
        class_map = self._known_classes()
        drift = data_drift(earlier[0], self._run.dataset, self._options.drift, class_map)
        return promotion.measure_drift(self._run, earlier[0], job, drift, class_map)

    def _known_classes(self) -> ClassMap:
        assert self._class_map is not None  # there is a champion
        return self._class_map

    def _stop(self, drift: Drift, data: Manifest) -> dict[str, Any]:
        """Publishes that drift has stopped the run, and returns the content of `decision.json`."""
        self._lease.check()
        return publish_stop(self._run, drift, {"rows": data.split("val").rows, **self._details(data)})

    def _details(self, data: Manifest) -> dict[str, Any]:
        """Returns the values of `decision.json` that every run has: its time, its data, and what was expected of it."""
        plan = self._plan
        before = latest_dataset(self._run.workspace, plan.latest)
        return {
            **self._class_details(),
            "seconds": self._seconds,
            "finished": time.time(),
            "data": data_changes(self._run.dataset, data, before),
            **({"replay": self._replay} if self._replay else {}),
            "plan": {
                "estimate": plan.estimate and plan.estimate.as_json(),
                "cost_per_hour": self._options.cost_per_hour,
                "resumed": plan.resumed,
            },
        }

    def _latency(self) -> tuple[float, float] | None:
        """Returns the seconds per image of champion and challenger, None without a champion.

        A run measures them once: after a kill, a machine that is busy now would decide otherwise.
        """
        place = files.join(self._run.folder, LATENCY_NAME)
        if not files.exists(place):
            measured = promotion.measure_latency(self._run)
            if measured is None:
                return None
            files.write_json(place, {"champion": measured[0], "challenger": measured[1]})
        seconds = files.read_json(place)
        return seconds["champion"], seconds["challenger"]

    def _night_level(self) -> NightLevel | None:
        """Returns tonight's level of the test of the gain; None if it is the gate's, as for a first model."""
        run = self._run
        if run.champion is None or run.gate.false_promotions_per_year is None:
            return None
        return take_level(run.workspace, run.id, run.gate.false_promotions_per_year, run.gate.level)

    def _confirm(
        self, decision: Decision, challenger: str, data: Manifest, earlier: list[str]
    ) -> tuple[Decision, Reading | None]:
        """Returns the decision with what the registry says and, if it still promotes, with the lock-box's check.

        The lock-box is read for a challenger that would replace a champion. With `RetrainOptions.shadow` that is when
        it becomes candidate, whatever a review decides on it. challenger: ID of its version.
        """
        decision = with_registry(self._run, decision, challenger, self._alias)
        if not (decision.promote and self._run.champion and self._run.gate.lock_box):
            return decision, None
        with self._stage("lock-box"), self._evaluation_session() as job:
            reading = read_lock_box(self._run, data, earlier, job, self._class_map)
        return with_reading(decision, reading), reading

    def _train(self, earlier: list[str]) -> None:
        """Trains the challenger; continues an interrupted training, and leaves a finished one as it is.

        earlier: as from `promotion.earlier_datasets`.
        """
        run, training, recipe = self._run, self._options.training, self._settings.recipe
        champion = run.champion_uri if run.champion and run.from_champion else None
        if champion:
            known = find_model(champion).recipe  # its weights expect its normalisation
            recipe = replace(recipe, pixel_mean=known.pixel_mean, pixel_std=known.pixel_std)
            if earlier and run.replay_share is not None:
                recipe, self._replay = with_replay(
                    recipe, run.dataset, earlier[0], run.replay_share, run.folder, self._class_map
                )
        start = self._champion_weights(recipe) if champion else None
        options = replace(training, pretrained=run.pretrained)
        job = make_job(run.dataset, run.training, recipe, self._options.workers, options, start)
        job = replace(job, label=files.basename(run.folder))  # the URI of every one ends in the same word
        train_job(job, training.wait_minutes, self._progress)

    def _champion_weights(self, recipe: Recipe) -> Weights:
        """Returns the champion's weights to start from; where classes differ, with a last layer for those of the run.

        The latter are written into the run's folder, the same bytes each time.
        """
        run, class_map = self._run, self._class_map
        if class_map is None or class_map.is_same:
            return weights_of("champion", files.join(run.champion_uri, checkpoint.MODEL_NAME))
        place = files.join(run.training, START_NAME)
        tensors = carry_over(find_model(run.champion_uri), class_map, recipe, self._options.training.seed)
        files.write_bytes(place, serialize_tensors(tensors))
        return weights_of("champion", place)

    def _evaluate(self, job: EvaluateJob) -> tuple[Predictions | None, Predictions, dict[str, Any]]:
        """Returns the predictions of champion (None without one) and challenger, and the challenger's metrics."""
        run = self._run
        challenger, values = promotion.evaluate_model(run, run.training, CHALLENGER_FOLDER, job)
        champion = None
        if run.champion is not None:
            champion, _ = promotion.evaluate_model(run, run.champion_uri, CHAMPION_FOLDER, job, self._class_map)
        return champion, challenger, values

    def _write_pages(self, data: Manifest, challenger: Predictions, values: dict[str, Any]) -> dict[str, str | None]:
        """Writes the challenger's report and, with a champion, the comparison. Returns their URIs."""
        run, folder = self._run, files.join(self._run.folder, CHALLENGER_FOLDER)
        report, comparison = write_report(folder, data, values, challenger), None
        shared, class_map = None, self._class_map
        if class_map is not None and not class_map.is_same:
            data, shared = replace(data, classes=class_map.answers), class_map.shared
        if run.champion is not None and (shared is None or np.isin(challenger.label, shared).any()):
            champion_folder = files.join(run.folder, CHAMPION_FOLDER)
            compared, pair = compare_predictions(champion_folder, folder, run.dataset, data, shared)
            _, comparison = write_comparison(run.folder, run.dataset, data, compared, pair)
        return {"report": report, "comparison": comparison}

    def _add_version(self) -> registry.Version:
        """Adds the challenger to the registry and returns its version."""
        run = self._run
        parent = run.champion.version if run.champion and run.from_champion else ""
        return registry.add(run.registry, run.training, files.join(run.folder, CHALLENGER_FOLDER), parent)


def _gain(contest: promotion.Contest) -> dict[str, float] | None:
    """Returns the gain of top-1 on the rows that count, with low and high of its 95 % interval, as shares.

    None without a champion, or without a row of a class that both models know.
    """
    if contest.pair is None:
        return None
    first, second = (each.correct for each in contest.pair)
    won, lost = int((~first & second).sum()), int((first & ~second).sum())
    low, high = paired_bounds(won, lost, len(first), (1 - CONFIDENCE) / 2)
    return {"gain": (won - lost) / len(first), "low": low, "high": high}
