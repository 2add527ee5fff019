"""Champion and challenger on the same rows: their evaluations, the rows that count, drift, and the decision."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_provenance, read_split_provenance
from pipeline.evaluation.analysis.latency import prediction_seconds
from pipeline.evaluation.analysis.leakage import leaked_rows
from pipeline.evaluation.certificate import certify
from pipeline.evaluation.metrics_file import build_metrics
from pipeline.evaluation.output_files import METRICS_NAME, read_kept, read_metrics, write_metrics
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.runner import EvaluateJob, run_evaluation
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.models.load import check_classes, find_model
from pipeline.retraining import registry
from pipeline.retraining.classes import ClassRules, change_text, compare_classes
from pipeline.retraining.decision.class_checks import with_changed_classes
from pipeline.retraining.decision.drift import Drift, assess, feature_distance
from pipeline.retraining.decision.promotion_gate import Check, Decision, Gate, decide
from pipeline.retraining.workspace import RetrainingRun
from pipeline.storage import files

# Enough for means of features: their standard error is 1.4 % of a standard deviation.
_DRIFT_ROWS = 5000


def evaluate_model(
    run: RetrainingRun, checkpoint: str, name: str, job: EvaluateJob, class_map: ClassMap | None = None
) -> tuple[Predictions, dict[str, Any]]:
    """Returns the predictions of a model on a split of the run's data set, and the content of its metrics.json.

    An evaluation that a process before this one has finished is read, not repeated.

    checkpoint: URI of a finished training run. name: of the evaluation's folder below the run's. job: split, workers
    and progress of the evaluation. class_map: where the model's classes aren't the data set's; its answers are then
    named as in `ClassMap.answers`.
    """
    out = files.join(run.folder, name)
    data, model = manifest.load(run.dataset), find_model(checkpoint)
    if class_map is None or class_map.is_same:
        check_classes(model, data.classes)
        class_map = None
    job = replace(job, checkpoint=checkpoint, dataset=run.dataset, out=out, views=model.recipe.test_views)
    job = replace(job, class_map=class_map)
    if not files.exists(files.join(out, METRICS_NAME)):
        run_evaluation(job)
        certificate, predictions = certify(job, data, model)
        named = data if class_map is None else replace(data, classes=class_map.answers)
        values = build_metrics(job, named, model, certificate, predictions)
        write_metrics(out, values)
    return read_predictions(out)[0], read_metrics(out)


def unseen_rows(dataset: str, data: Manifest, others: list[str], name: str = "val") -> npt.NDArray[np.bool_]:
    """Returns bool [rows of the split]: True for the images that neither model can know from its training.

    False are the duplicates of training images (`leakage.leaked_rows`), and images whose source file, by its SHA-256,
    is in the train split of one of `others`, the data sets that the champion and its ancestors were trained on.
    """
    split = data.split(name)
    unseen = np.ones(split.rows, dtype=np.bool_)
    unseen[leaked_rows(dataset, data, name)] = False
    trained_on: set[bytes] = set()
    for uri in others:
        trained_on.update(_source_hashes(uri, manifest.load(uri), "train"))
    hashes = _source_hashes(dataset, data, name)
    return unseen & np.array([sha256 not in trained_on for sha256 in hashes], dtype=np.bool_)


def _source_hashes(uri: str, data: Manifest, split: str) -> list[bytes]:
    """Returns the SHA-256 of each row's source file."""
    hashes: list[bytes] = read_split_provenance(uri, data.split(split), ["source_sha256"])["source_sha256"].to_pylist()
    return hashes


def measure_latency(run: RetrainingRun) -> tuple[float, float] | None:
    """Returns the seconds per image of champion and challenger, or None without a champion."""
    if run.champion is None:
        return None
    champion, challenger = prediction_seconds([find_model(run.champion_uri), find_model(run.training)])
    return champion, challenger


def earlier_datasets(run: RetrainingRun) -> list[str]:
    """Returns the URIs of the other data sets that the champion (first) and its ancestors were trained on."""
    found, version = list[str](), run.champion.version if run.champion else ""
    while version:
        uri = registry.version_uri(run.registry, version)
        found.append(read_metrics(uri)["dataset"]["uri"])
        version = registry.get(run.registry, version).parent
    return [uri for uri in dict.fromkeys(found) if uri != run.dataset]


def compare_with_champion(run: RetrainingRun, data: Manifest, given: ClassRules, earlier: list[str]) -> ClassMap | None:
    """Returns which class of the run's data set each of the champion's is; None without a champion.

    given: what is said of classes in this call; the run's own rules hold what was said before, too. earlier: as from
    `earlier_datasets`. Raises DatasetError if a class is missing.
    """
    if run.champion is None:
        return None
    known, rules = find_model(run.champion_uri).classes, run.classes or ClassRules()
    if not earlier:
        return compare_classes(known, data, given, rules)
    before = manifest.load(earlier[0])
    return compare_classes(
        known, data, given, rules, before, lambda missing: moved_classes(earlier[0], before, run.dataset, data, missing)
    )


def moved_classes(before: str, old: Manifest, after: str, new: Manifest, missing: list[str]) -> dict[str, str]:
    """Returns {missing class: the class that holds at least half of its images now}, by their files' SHA-256.

    before, after: URIs of the data sets `old` and `new`. missing: classes of the former.
    """
    of_image = dict(_classes_of_images(after, new))
    found = {name: Counter[str]() for name in missing}
    rows = Counter[str]()
    for sha256, name in _classes_of_images(before, old):
        if name in found:
            rows[name] += 1
            if sha256 in of_image:
                found[name][of_image[sha256]] += 1
    most = {name: counts.most_common(1)[0] for name, counts in found.items() if counts}
    return {name: target for name, (target, count) in most.items() if 2 * count >= rows[name]}


def _classes_of_images(uri: str, data: Manifest) -> Iterator[tuple[bytes, str]]:
    """Yields SHA-256 and class of every image, of all splits: a renamed image may be in another one."""
    table = read_provenance(uri, data, ["source_sha256", "label"])
    for sha256, label in zip(table["source_sha256"].to_pylist(), table["label"].to_pylist(), strict=True):
        yield sha256, data.classes[label]


def measure_drift(run: RetrainingRun, before: str, job: EvaluateJob, known: Drift, class_map: ClassMap) -> Drift:
    """Returns the drift of the run's data set from the one at `before`: `known`, with the champion's features.

    The features are those of the first 5,000 training images of each. job: workers and progress. known: as from
    `data_drift`. class_map: the champion's classes in the run's data set; a renamed class is the same one.
    """
    features = []
    for name, uri in (("before", before), ("after", run.dataset)):
        data = manifest.load(uri)
        rows = min(_DRIFT_ROWS, data.split("train").rows)
        out, of_data = files.join(run.folder, "drift", name), replace(class_map, classes=data.classes)
        part = replace(job, checkpoint=run.champion_uri, dataset=uri, out=out, split="train", rows=rows)
        run_evaluation(replace(part, keep="features", class_map=None if of_data.is_same else of_data))
        features.append(read_kept(out))
    return assess(known.class_mix, known.brightness, feature_distance(*features), known.thresholds)


def decide_without_champion(challenger: Predictions, num_classes: int, gate: Gate) -> Decision:
    """Returns whether the first model may go live: it must beat a constant guess of the most frequent class.

    One-sided exact binomial test at the gate's level.
    """
    from scipy.stats import binomtest

    right, rows = int(challenger.correct.sum()), len(challenger.label)
    frequent = int(np.bincount(challenger.label, minlength=num_classes).max()) / rows
    p = float(binomtest(right, rows, min(frequent, 1 - 1e-9), alternative="greater").pvalue)
    text = f"{100 * right / rows:.2f} % of {rows:,} images, {100 * frequent:.2f} % are of the most frequent class"
    text += "" if p <= gate.level else f": no better than that (p = {p:.2g})"
    rule = f"fails unless it beats guessing the most frequent class, with p at most {gate.level:g}"
    check = Check("better than a guess", p <= gate.level, p, gate.level, text, rule)
    return Decision(check.passed, (check,), {"challenger": right})


@dataclass(frozen=True)
class Contest:
    """Champion and challenger on one validation split. Raises RecipeError if no row is left that counts."""

    champion: Predictions | None
    """None if nothing is live yet. Its answers are named as in `ClassMap.answers` where its classes are others."""

    challenger: Predictions

    classes: tuple[str, ...]
    """Of the data set."""

    unseen: npt.NDArray[np.bool_]
    """The rows that neither model was trained on, as from `unseen_rows`."""

    class_map: ClassMap | None = None
    """The champion's classes in the data set; None where they are the same."""

    def __post_init__(self) -> None:
        if not self.unseen.any():
            raise RecipeError(
                "no validation image is left that neither model was trained on; add new ones to the source"
            )

    @property
    def rows(self) -> npt.NDArray[np.bool_]:
        """bool [rows of val]: the rows that count, which neither was trained on and whose class both know.

        Where the models have no class in common, it is those that neither was trained on.
        """
        return self._of_both if self._of_both.any() else self.unseen

    @cached_property
    def _of_both(self) -> npt.NDArray[np.bool_]:
        if self.class_map is None or self.class_map.is_same:
            return self.unseen
        known = np.zeros(len(self.unseen), dtype=np.bool_)
        known[self.challenger.row[np.isin(self.challenger.label, self.class_map.shared)]] = True
        return self.unseen & known

    @property
    def pair(self) -> tuple[Predictions, Predictions] | None:
        """Predictions of champion and challenger for `rows`; None where they can't be compared."""
        if self.champion is None or not self._of_both.any():
            return None
        return self.champion.take(self.rows[self.champion.row]), self.challenger.take(self.rows[self.challenger.row])


def decide_promotion(
    contest: Contest, gate: Gate, latency_seconds: tuple[float, float] | None = None, rules: ClassRules | None = None
) -> Decision:
    """Returns the decision on the rows that neither model was trained on.

    latency_seconds: per image, of champion and challenger. rules: of classes that have changed; None for the defaults.
    Where they have, the tests of champion against challenger are on the classes that both know. A gain is asked for
    unless a class was added, removed or merged: another name alone changes no answer.
    """
    pair, class_map = contest.pair, contest.class_map
    challenger = contest.challenger.take(contest.unseen[contest.challenger.row])
    if pair is None:
        decision = decide_without_champion(challenger, len(contest.classes), gate)
    else:
        decision = decide(*pair, contest.classes, gate, latency_seconds)
    if class_map is None or not class_map.has_changed:
        return decision
    if class_map.has_other_classes:
        decision = with_changed_classes(decision, pair, challenger, class_map, rules or ClassRules(), gate)
    return replace(decision, remark=change_text(class_map))
