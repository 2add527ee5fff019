"""One night of retraining, in stages that may each be killed: what a night is, what both models are judged on, and what
is decided.

Below a workspace lie `datasets/`, `registry/`, `nights/ID/` and `latest.json`. A night's ID is a hash of what it rests
on. One that was killed is named by `active.json` and goes on: ingest and training by themselves, evaluations and the
registry because doing them twice gives the same.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_provenance
from pipeline.evaluation import metrics_file
from pipeline.evaluation.analysis.latency import prediction_seconds
from pipeline.evaluation.certificate import certify
from pipeline.evaluation.leakage import leaked_rows
from pipeline.evaluation.output_files import METRICS_NAME, read_kept, read_metrics, write_metrics
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.runner import EvaluateJob, run_evaluation
from pipeline.models.load import check_classes, find_model
from pipeline.reporting.charts import page
from pipeline.retraining import registry
from pipeline.retraining.drift import Drift, Thresholds, brightness, class_mix, feature_distance, judge
from pipeline.retraining.promotion_gate import Check, Decision, Gate, decide
from pipeline.storage import files
from pipeline.storage.claim import claim_folder

LATEST_NAME, ACTIVE_NAME = "latest.json", "active.json"
DECISION_NAME, PAGE_NAME = "decision.json", "decision.html"
_DRIFT_ROWS = 5000


@dataclass(frozen=True)
class Night:
    """What a night rests on. fingerprint: of the source; recipe: JSON of the resolved one; champion: the move that made
    the champion at its start, or None; attempt: counts nights that were forced on the same."""

    workspace: str
    source: str
    fingerprint: str
    recipe: dict[str, Any]
    champion: registry.Move | None
    gate: Gate
    from_champion: bool
    attempt: int = 0

    @property
    def id(self) -> str:
        """The first 12 digits of a SHA-256 over all of it but the workspace."""
        values = {**asdict(self), "workspace": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Where everything of the night lies."""
        return files.join(self.workspace, "nights", self.id)

    @property
    def dataset(self) -> str:
        """Where the version of the data set lies: the same for all nights on it."""
        return files.join(self.workspace, "datasets", self.fingerprint[:12])

    @property
    def registry(self) -> str:
        """Where the models are."""
        return files.join(self.workspace, "registry")

    @property
    def champion_uri(self) -> str:
        """The champion's version, as a run."""
        assert self.champion is not None
        return registry.version_uri(self.registry, self.champion.version)


def begin(planned: Night) -> Night:
    """Returns the night to work on, and names it in `active.json`: one that was cut off, if it rests on the same, with
    the champion that it began with; else the planned one.
    """
    place = files.join(planned.workspace, ACTIVE_NAME)
    values = claim_folder(place, asdict(planned), end="\n")
    move = values["champion"]
    values |= {"champion": move and registry.Move(**move), "gate": Gate(**values["gate"])}
    found = Night(**{**values, "workspace": planned.workspace})
    if asdict(replace(found, champion=planned.champion)) == json.loads(json.dumps(asdict(planned))):
        return found
    files.write_json(place, asdict(planned), pretty=True)
    return planned


def is_cut_off(workspace: str) -> bool:
    """Whether a night was begun and not ended."""
    return files.exists(files.join(workspace, ACTIVE_NAME))


def read_latest(workspace: str) -> dict[str, Any] | None:
    """Returns what the newest finished night said of itself, or None."""
    place = files.join(workspace, LATEST_NAME)
    if not files.exists(place):
        return None
    latest: dict[str, Any] = files.read_json(place)
    return latest


def nothing_to_do(latest: dict[str, Any] | None, fingerprint: str, recipe: dict[str, Any]) -> bool:
    """Whether the newest night was on the same source with the same recipe."""
    if latest is None:
        return False
    same: bool = (latest["fingerprint"], latest["recipe"]) == (fingerprint, recipe)
    return same


# --- what both are judged on -------------------------------------------------------------------------------------


def evaluate_model(night: Night, checkpoint: str, name: str, job: EvaluateJob) -> tuple[Predictions, dict[str, Any]]:
    """Evaluates a model on val of the night's data set, below the night's folder; once, however often it is asked.

    job: workers and progress. Returns its predictions and the content of its metrics.json.
    """
    out = files.join(night.folder, name)
    data, model = manifest.load(night.dataset), find_model(checkpoint)
    check_classes(model, data.classes)
    mine = replace(job, checkpoint=checkpoint, dataset=night.dataset, out=out, views=model.recipe.test_views)
    if not files.exists(files.join(out, METRICS_NAME)):
        run_evaluation(mine)
        certificate, predictions = certify(mine, data, model)
        values = metrics_file.gather(mine, data, model, certificate, predictions)
        write_metrics(out, values)
    return read_predictions(out)[0], read_metrics(out)


def fair_rows(dataset: str, data: Manifest, others: list[str]) -> npt.NDArray[np.bool_]:
    """Returns bool [rows of val]: the images that neither model can know from training.

    Left out are `result.leaked_rows`, and those whose source file, by its SHA-256, is in
    train of one of `others`, data sets that the champion and those before it were trained on.
    """
    split = data.split("val")
    fair = np.ones(split.rows, dtype=np.bool_)
    fair[leaked_rows(dataset, data)] = False
    seen: set[bytes] = set()
    for uri in others:
        seen.update(_sources(uri, manifest.load(uri), "train"))
    mine = _sources(dataset, data, "val")
    return fair & np.array([sha256 not in seen for sha256 in mine], dtype=np.bool_)


def _sources(uri: str, data: Manifest, split: str) -> list[bytes]:
    """Returns the SHA-256 of each row's source file."""
    table = read_provenance(uri, data, ["source_sha256"])
    of_split = table.filter(np.array(table["split"].to_pylist()) == split)
    sources: list[bytes] = of_split["source_sha256"].to_pylist()
    return sources


def measure_latency(night: Night, run: str) -> tuple[float, float] | None:
    """Returns the seconds that an image takes champion and challenger, or None where nothing is live yet."""
    if night.champion is None:
        return None
    before, after = prediction_seconds([find_model(night.champion_uri), find_model(run)])
    return before, after


def datasets_of(night: Night) -> list[str]:
    """Returns the other data sets that the champion, first, and those that it was trained from have seen."""
    found, version = list[str](), night.champion.version if night.champion else ""
    while version:
        uri = registry.version_uri(night.registry, version)
        found.append(read_metrics(uri)["dataset"]["uri"])
        version = registry.get(night.registry, version).parent
    return [uri for uri in dict.fromkeys(found) if uri != night.dataset]


# --- drift and decision --------------------------------------------------------------------------------------------


def measure_drift(night: Night, before: str, job: EvaluateJob, thresholds: Thresholds) -> Drift:
    """Returns what has changed since the data set at `before`: classes, brightness, and the champion's features."""
    old, new = manifest.load(before), manifest.load(night.dataset)
    kept = []
    for name, uri, data in (("before", before, old), ("after", night.dataset, new)):
        rows = min(_DRIFT_ROWS, data.split("train").rows)
        out = files.join(night.folder, "drift", name)
        run_evaluation(
            replace(job, checkpoint=night.champion_uri, dataset=uri, out=out, split="train", rows=rows, keep="features")
        )
        kept.append(read_kept(out))
    return judge(
        class_mix(old, new), brightness(before, old, night.dataset, new), feature_distance(kept[0], kept[1]), thresholds
    )


def decide_first(challenger: Predictions, num_classes: int, gate: Gate) -> Decision:
    """Decides on a model where nothing is live yet: it must be better than always saying the most frequent class."""
    from scipy.stats import binomtest

    right, rows = int(challenger.correct.sum()), len(challenger.label)
    frequent = int(np.bincount(challenger.label, minlength=num_classes).max()) / rows
    p = float(binomtest(right, rows, min(frequent, 1 - 1e-9), alternative="greater").pvalue)
    text = f"{100 * right / rows:.2f} % of {rows:,} images, {100 * frequent:.2f} % are of the most frequent class"
    text += "" if p <= gate.level else f": no better than that (p = {p:.2g})"
    check = Check("better than a guess", p <= gate.level, p, gate.level, text)
    return Decision(check.passed, (check,))


def decide_night(
    night: Night, champion: Predictions | None, challenger: Predictions, data: Manifest, fair: npt.NDArray[np.bool_],
    latency_seconds: tuple[float, float] | None = None,
) -> Decision:  # fmt: skip
    """Decides on the rows that are fair to both. Raises RecipeError where there are none."""
    if not fair.any():
        raise RecipeError("no validation image is left that neither model was trained on; give the source new ones")
    if champion is None:
        return decide_first(challenger.take(fair[challenger.row]), len(data.classes), night.gate)
    before, after = (each.take(fair[each.row]) for each in (champion, challenger))
    return decide(before, after, data.classes, night.gate, latency_seconds)


def conclude(night: Night, decision: Decision, challenger: str, fence: int, more: dict[str, Any]) -> dict[str, Any]:
    """Names the challenger, moves the champion by the decision, and writes `decision.json`, its page and, last,
    `latest.json`. Returns the first.

    fence: of the champion, taken when this process began (`registry.take_fence`). more: fair_rows, rows, drift,
    seconds, report and comparison (URIs or None) of the night.

    Raises RegistryError if the champion isn't the one any more that the night began with, or another process has
    begun since.
    """
    named = registry.current(night.registry, registry.CHALLENGER)
    registry.move(night.registry, registry.CHALLENGER, challenger, f"trained in night {night.id}", named)
    now = registry.current(night.registry, registry.CHAMPION)
    mine = now is not None and now.version == challenger and now.reason.endswith(f"(night {night.id})")
    if decision.promote and not mine:  # else killed between the promotion and this night's last line
        reason = f"{decision.reason} (night {night.id})"
        registry.move(night.registry, registry.CHAMPION, challenger, reason, night.champion, fence)
    values = {
        "night": night.id,
        **decision.as_json(),
        "challenger": challenger,
        "champion_before": night.champion.version if night.champion else None,
        "fingerprint": night.fingerprint,
        "recipe": night.recipe,
        "dataset": night.dataset,
        "attempt": night.attempt,
        **more,
    }
    data = json.dumps(values, indent=1).encode() + b"\n"
    files.write_bytes(files.join(night.folder, DECISION_NAME), data)
    files.write_bytes(files.join(night.folder, PAGE_NAME), page("decision.html", values=values).encode())
    files.write_bytes(files.join(night.workspace, LATEST_NAME), data)
    files.delete_files(night.workspace, [ACTIVE_NAME])
    return values
