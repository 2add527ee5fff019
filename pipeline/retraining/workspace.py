"""A retraining run and its files in a workspace: the plan, resumption after a kill, and the published decision.

A workspace is a folder or a prefix of a bucket:

    datasets/FINGERPRINT/  the data set that was ingested from one state of the source
    registry/              the models (`registry.py`)
    nights/ID/             one retraining run: its training, evaluations, drift, `decision.json` and `decision.html`
    active.json            the run that works now, or was interrupted
    latest.json            the decision of the newest finished run
    status.json            how the last call ended (`notices/status_file.py`)
    index.html             the page of all runs, from nights.json, their summaries (`overview/nights.py`)
    notices/               messages that no webhook has accepted yet

The ID of a run is a hash of its inputs, so the same inputs always name the same folder. An interrupted run is found by
`active.json` and continues: ingest and training resume by themselves; evaluations and additions to the registry give
the same when they are repeated.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.core.errors import StorageError
from pipeline.models import checkpoint
from pipeline.retraining import registry
from pipeline.retraining.classes import ClassRules
from pipeline.retraining.decision.page import render_decision
from pipeline.retraining.decision.promotion_gate import Check, Decision, Gate, RecallChange
from pipeline.retraining.decision_file import DECISION_NAME, LATEST_NAME, read_decision
from pipeline.retraining.live.candidates import DAYS_OF_A_CANDIDATE, needs_labels, pending_candidate, sent_back
from pipeline.retraining.live.limits import LABELS_AFTER_RETURN
from pipeline.storage import files
from pipeline.storage.places import claim_folder

ACTIVE_NAME = "active.json"
PAGE_NAME = "decision.html"
CANDIDATE = "candidate"  # `status` of a decision whose challenger waits for a review
_LIMIT = "false_promotions_per_year"  # of the gate; runs that began before there was one have none
_TRAINED_IN = "trained in night "  # begins the reason of the challenger's move; the ID of the run follows


@dataclass(frozen=True)
class RetrainingRun:
    """The inputs of one retraining run. Its ID depends on their names and values, so no field may be renamed."""

    workspace: str  # absolute URI
    source: str  # absolute URI of the raw images
    fingerprint: str  # of the source: changes with the names, sizes and times of its files
    recipe: dict[str, Any]  # JSON values of the resolved recipe; empty in a plan that can't know it yet
    champion: registry.Move | None  # the alias's newest move when the run was planned; None without a champion
    gate: Gate
    from_champion: bool  # whether training begins with the champion's weights
    attempt: int = 0  # counts runs that were forced on the same source and recipe
    pretrained: str | None = None  # weights that training begins with, as `TrainOptions.pretrained`
    classes: ClassRules | None = None  # what is said of classes that change; None for nothing
    replay_share: float | None = None  # of old rows in an epoch, as `RetrainOptions.replay_share`

    @property
    def id(self) -> str:
        """The first 12 hex digits of a SHA-256 over all fields but the workspace and newer ones that change nothing.

        So runs of workspaces that don't know these fields keep their IDs.
        """
        values = {**self.as_json(), "workspace": "", "gate": self.gate.identity()}
        if self.pretrained is None:
            del values["pretrained"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def as_json(self) -> dict[str, Any]:
        """Returns the content of `active.json`: all fields, but those of later programs that are None."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # as it is read back: lists for tuples
        for name in ("classes", "replay_share"):
            if values[name] is None:
                del values[name]
        values["champion"] = self.champion and self.champion.as_json()
        return values

    @property
    def folder(self) -> str:
        """The URI of the run's own folder."""
        return night_uri(self.workspace, self.id)

    @property
    def training(self) -> str:
        """The URI of the run's training: a run's folder, as `train` writes it."""
        return files.join(self.folder, "run")

    @property
    def dataset(self) -> str:
        """The URI of the ingested data set, which all retraining runs on the same state of the source share.

        Those with a lock-box have other data sets: a part of val is test there.
        """
        part = f"-lock-box-{self.gate.lock_box:g}" if self.gate.lock_box else ""
        return files.join(self.workspace, "datasets", f"{self.fingerprint[:12]}{part}")

    @property
    def registry(self) -> str:
        """The URI of the model registry."""
        return registry_uri(self.workspace)

    @property
    def champion_uri(self) -> str:
        """The URI of the champion's version, which can be used as a finished training run."""
        assert self.champion is not None
        return registry.version_uri(self.registry, self.champion.version)


def registry_uri(workspace: str) -> str:
    """Returns the URI of a workspace's model registry."""
    return files.join(workspace, "registry")


def night_uri(workspace: str, night: str) -> str:
    """Returns the URI of the folder of a retraining run, by its ID."""
    return files.join(workspace, "nights", night)


def resume_or_start(planned: RetrainingRun) -> RetrainingRun:
    """Returns the interrupted run of `active.json` if its inputs are those planned, else writes `planned` there.

    The champions may differ: an interrupted run goes on with the champion that it began with if it has itself promoted
    the one that is live now. If another process or a person has moved the champion, its comparison is of no use. The
    limits of false promotions may differ if the run began before there was one.
    """
    place = files.join(planned.workspace, ACTIVE_NAME)
    values = claim_folder(place, planned.as_json(), end="\n")
    active = _run_of(values, planned.workspace)
    wanted = replace(planned, champion=active.champion)
    if _LIMIT not in values["gate"]:
        wanted = replace(wanted, gate=replace(planned.gate, false_promotions_per_year=None))
    is_same = active.as_json() == wanted.as_json()
    if is_same and (active.champion == planned.champion or _has_promoted(active, planned.champion)):
        return active
    files.write_json(place, planned.as_json(), pretty=True)
    return planned


def _has_promoted(run: RetrainingRun, champion: registry.Move | None) -> bool:
    """Whether the champion is the run's model: promoted by the run, or by a review of the run's candidate."""
    if champion is None or champion.mark == ("night", run.id):
        return champion is not None
    candidate = registry.current(run.registry, registry.CANDIDATE)
    if candidate is None or candidate.mark != ("night", run.id):
        return False
    return champion.mark[0] == "review" and candidate.version == champion.version


def _run_of(values: dict[str, Any], workspace: str) -> RetrainingRun:
    """Returns the run of `active.json`, in the workspace where the file lies now. Raises StorageError if it is none."""
    try:
        move, rules = values["champion"], values.get("classes")
        gate = Gate(**{_LIMIT: None, **values["gate"]})
        values = {**values, "champion": move and registry.Move(**move), "gate": gate}
        values["classes"] = rules and ClassRules(**{**rules, "removed": tuple(rules["removed"])})
        return RetrainingRun(**{**values, "workspace": workspace})
    except (AttributeError, KeyError, TypeError) as error:
        place = files.join(workspace, ACTIVE_NAME)
        raise StorageError(f"{place}: damaged ({error!r}); remove it: the interrupted run starts anew") from error


def interrupted_run(workspace: str) -> RetrainingRun | None:
    """Returns the retraining run that was started and hasn't published its decision, None if there is none."""
    place = files.join(workspace, ACTIVE_NAME)
    if not files.exists(place):
        return None
    run, latest = _run_of(files.read_json(place), workspace), read_latest(workspace)
    is_finished = latest is not None and latest.get("night") == run.id  # it was killed before its last step
    return None if is_finished else run


def delete_finished(workspace: str) -> None:
    """Deletes `active.json` if its run has published its decision, as that run does in its last step."""
    if interrupted_run(workspace) is None:
        files.delete_files(workspace, [ACTIVE_NAME])


def night_of(workspace: str, version: str) -> str | None:
    """Returns the ID of the retraining run that trained a version; None for a version that was added otherwise."""
    place = registry_uri(workspace)
    created = registry.read_version(place, version).created
    for move in registry.newest_first(place, registry.CHALLENGER):
        if move.version == version and move.reason.startswith(_TRAINED_IN):
            return move.reason.removeprefix(_TRAINED_IN)
        if move.time < created - 86_400:  # a run names a version after it has added it; a day for clocks that differ
            break
    return None


def decision_of(workspace: str, night: str) -> dict[str, Any] | None:
    """Returns the decision of a retraining run, by its ID; None if it has published none."""
    place = files.join(night_uri(workspace, night), DECISION_NAME)
    return read_decision(place) if files.exists(place) else None


def renames_of(place: str, version: str) -> dict[str, str]:
    """Returns {earlier name: name now} of the classes that the run which trained a version found renamed or merged.

    place: URI of the registry. Empty for a version that wasn't trained in a workspace with this registry.
    """
    workspace = files.resolve(place, "../")
    night = night_of(workspace, version) if registry_uri(workspace) == place else None
    classes = ((night and decision_of(workspace, night)) or {}).get("classes", {})
    merged = {old: new for new, names in classes.get("merged", {}).items() for old in names if old != new}
    return {**classes.get("renamed", {}), **merged}


def read_latest(workspace: str) -> dict[str, Any] | None:
    """Returns the decision of the newest finished run, or None if there is none."""
    place = files.join(workspace, LATEST_NAME)
    return read_decision(place) if files.exists(place) else None


def latest_dataset(workspace: str, latest: dict[str, Any] | None) -> str | None:
    """Returns the URI of the newest finished run's data set, where the workspace lies now; None without a run."""
    return files.join(workspace, "datasets", files.basename(latest["dataset"])) if latest else None


def is_unchanged(latest: dict[str, Any] | None, fingerprint: str, recipe: dict[str, Any]) -> bool:
    """Whether the newest finished run had the same source and recipe.

    latest: as from `read_latest`. fingerprint, recipe: as in `RetrainingRun`.
    """
    return latest is not None and bool((latest["fingerprint"], latest["recipe"]) == (fingerprint, recipe))


def publish(
    run: RetrainingRun,
    decision: Decision,
    challenger: str,
    fence: int,
    details: dict[str, Any],
    alias: str = registry.CHAMPION,
) -> dict[str, Any]:
    """Names the challenger, moves an alias if `decision` promotes it, and returns the content of `decision.json`.

    Writes `decision.json`, its page and, last, `latest.json`; each step can be repeated after a kill.

    challenger: ID of the new version. fence: the champion's fencing token, taken when this process began
    (`registry.take_fence`). details: the values of `decision.json` that aren't known here: fair_rows, rows, drift,
    seconds, report and comparison (URIs or None). alias: the one that moves, `champion` or `candidate`; a first model
    becomes champion at once, and none does after a return (`candidates.needs_labels`). Weights that a review has sent
    back aren't promoted again (`candidates.sent_back`), and a candidate that waits isn't replaced for a while. What
    this run has moved before it was killed stays: the alias, and the decision.

    Raises RegistryError if the champion is no longer the one that the run was planned with, or another process has
    taken a fencing token since.
    """
    newest = registry.current(run.registry, registry.CHALLENGER)
    registry.move(run.registry, registry.CHALLENGER, challenger, f"{_TRAINED_IN}{run.id}", newest)
    alias, decision = _alias(run, challenger, alias), with_registry(run, decision, challenger, alias)
    reason = decision.reason
    if decision.promote:
        reason = _point(run, alias, challenger, reason, fence)
    status = {"status": CANDIDATE} if decision.promote and alias == registry.CANDIDATE else {}
    head = {**decision.as_json(), "reason": reason, **status, "challenger": challenger}
    return finish(run, head, details, decision.changes)


def finish(
    run: RetrainingRun, head: dict[str, Any], details: dict[str, Any], changes: tuple[RecallChange, ...] = ()
) -> dict[str, Any]:
    """Writes the decision of a run, its page and, last, `latest.json`; returns the content of `decision.json`.

    head, details: values before and after those of the run's inputs. changes: of each class's recall, for the page.
    """
    values = {
        "night": run.id,
        **head,
        "champion_before": run.champion.version if run.champion else None,
        "fingerprint": run.fingerprint,
        "recipe": run.recipe,
        "pretrained": run.pretrained,
        "dataset": run.dataset,
        "attempt": run.attempt,
        **details,
    }
    files.write_json(files.join(run.folder, DECISION_NAME), values, pretty=True)
    page = render_decision(run.folder, values, changes)
    files.write_bytes(files.join(run.folder, PAGE_NAME), page.encode())
    files.write_json(files.join(run.workspace, LATEST_NAME), values, pretty=True)
    files.delete_files(run.workspace, [ACTIVE_NAME])
    return values


def with_registry(run: RetrainingRun, decision: Decision, challenger: str, alias: str) -> Decision:
    """Returns the decision with what the registry says: weights that were sent back, or a candidate that waits.

    A run that was killed after it had moved an alias has decided: it promotes. challenger, alias: as in `publish`.
    """
    alias = _alias(run, challenger, alias)
    if _is_published(run, alias, challenger):
        return replace(decision, promote=True)
    if not decision.promote:
        return decision
    decision = _without_sent_back(run.registry, challenger, decision)
    return _without_waiting(run, challenger, decision) if alias == registry.CANDIDATE else decision


def _alias(run: RetrainingRun, challenger: str, wanted: str) -> str:
    """Returns the alias that the run moves: the one that it has moved before it was killed, else the wanted one."""
    if run.champion is None or _is_published(run, registry.CHAMPION, challenger):
        return registry.CHAMPION
    is_nominated = _is_published(run, registry.CANDIDATE, challenger)  # a review may have promoted it since
    return registry.CANDIDATE if is_nominated or needs_labels(run.registry) else wanted


def _is_published(run: RetrainingRun, alias: str, challenger: str) -> bool:
    """Whether this run has moved the alias before: it was killed before its last line."""
    newest = registry.current(run.registry, alias)
    return newest is not None and newest.version == challenger and newest.mark == ("night", run.id)


def _point(run: RetrainingRun, alias: str, challenger: str, reason: str, fence: int) -> str:
    """Points the alias at the challenger, once, and returns the reason without its mark."""
    mark, newest = f"(night {run.id})", registry.current(run.registry, alias)
    if newest is not None and _is_published(run, alias, challenger):
        return newest.reason.removesuffix(f" {mark}")
    if alias == registry.CHAMPION:
        registry.move(run.registry, alias, challenger, f"{reason} {mark}", run.champion, fence)
        return reason
    assert run.champion is not None
    reason = f"candidate: {reason.removeprefix('promoted: ')}"
    if needs_labels(run.registry):
        reason += f"; since a champion went back, it needs {LABELS_AFTER_RETURN} labels, or a person who promotes it"
    waiting = pending_candidate(run.registry)
    if waiting is not None and waiting.version != challenger:
        reason += f"; takes the place of {waiting.version}, on which nothing was decided"
    registry.nominate(run.registry, challenger, f"{reason} {mark}", run.champion, fence)
    return reason


def _without_waiting(run: RetrainingRun, challenger: str, decision: Decision) -> Decision:
    """Returns the decision, which promotes, with one more check that fails if another candidate waits."""
    waiting = pending_candidate(run.registry)
    if waiting is None or waiting.version == challenger or run.champion is None:
        return decision
    days = (time.time() - waiting.time) / 86_400
    if waiting.against != run.champion.number or days >= DAYS_OF_A_CANDIDATE:
        return decision
    text = f"{waiting.version} waits as candidate for {days:.0f} of {DAYS_OF_A_CANDIDATE} days; a review decides on it"
    rule = f"fails while another candidate waits, for {DAYS_OF_A_CANDIDATE} days"
    check = Check("candidate waits", False, days, DAYS_OF_A_CANDIDATE, text, rule)
    return replace(decision, promote=False, checks=(*decision.checks, check))


def _without_sent_back(place: str, challenger: str, decision: Decision) -> Decision:
    """Returns the decision, which promotes, with one more check that fails if a review has sent these weights back."""
    weights = registry.read_version(place, challenger).files[checkpoint.MODEL_NAME]
    if weights not in sent_back(place):
        return decision
    text = f"{challenger} has the weights of a version that a review took back or dropped; only a person promotes it"
    check = Check("not sent back", False, 1.0, 0.0, text, "fails if a review took these weights back or dropped them")
    return replace(decision, promote=False, checks=(*decision.checks, check))
