"""`retrain`: one retraining run, alone in its workspace and within its time budget."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import DatasetError, MovedError, UnavailableError
from pipeline.core.progress import Progress, silent
from pipeline.retraining.budget import time_budget
from pipeline.retraining.decision.stop import STOPPED
from pipeline.retraining.live.review import Review, review
from pipeline.retraining.notices.notifier import Notifier
from pipeline.retraining.overview.report import report_nights
from pipeline.retraining.plan import Plan, RetrainOptions, StrPath, plan_retraining, resolve_uris
from pipeline.retraining.run_settings import chosen_settings
from pipeline.retraining.stages import Stages, ingest_source
from pipeline.retraining.workspace import (
    RetrainingRun,
    delete_finished,
    interrupted_run,
    registry_uri,
    resume_or_start,
)
from pipeline.storage import files, lease
from pipeline.storage.places import check_folder

log = logging.getLogger(__name__)

Status = Literal["promoted", "candidate", "kept", "stopped", "unchanged", "busy"]
_LEASE_NAME = "lease.json"
_SECONDS_BETWEEN_TRIES = 2.0
_REVIEWS = 3  # each that another review has forestalled finds less to do


@dataclass(frozen=True)
class Outcome:
    """The result of a call of `retrain`."""

    status: Status
    """"promoted": the new model is the champion. "candidate": it passed the gate, and waits for a review. "kept": the
    gate refused it. "stopped": drift ended the run before it trained (`RetrainOptions.on_drift`). "unchanged": source
    and recipe are those of the newest finished run. "busy": a concurrent run works in the workspace. The last two did
    nothing."""
    message: str
    """The reason, in one sentence."""
    run: RetrainingRun | None = None
    """The run; None if nothing was done."""
    decision: dict[str, Any] = field(default_factory=dict)
    """The content of `decision.json`; empty if nothing was done."""
    review: Review = field(default_factory=lambda: Review(unused=True))
    """What was decided on candidate and champion before the run: `review.returned` says that the champion went back."""


def retrain(
    source: StrPath,
    workspace: StrPath,
    recipe: Recipe | str | None = None,
    options: RetrainOptions | None = None,
    progress: Progress = silent,
    on_start: Callable[[Plan], None] | None = None,
) -> Outcome:
    """Trains on the source if it has changed, promotes the new model if it is better, and returns the outcome.

        outcome = retrain("photos/", "work/")
        print(outcome.status, outcome.message)

    Ingests the source, trains, evaluates champion and challenger on images that neither was trained on, measures drift,
    adds the challenger to the workspace's registry, and points the alias `champion` at it if the promotion gate passes
    (`candidate` with `options.shadow`). Before that it reviews candidate and champion by what they did in use
    (`live/review.py`).
    One run works in a workspace at a time. Any stage may be killed; the same call continues there.

    source: raw images, as `ingest` takes them. workspace: a folder, or a prefix of a bucket, for the data sets, runs
    and registry (`workspace.py`). recipe: a recipe or its name; None for the champion's, and for one that is chosen for
    the images and this machine where there is no champion. progress: called with the progress of each stage. on_start:
    called with the plan once it is known, before anything is trained, if there is something to do.

    Joins the cluster of RAY_ADDRESS, or starts Ray on this machine, for the stages that need it. Raises SourceError,
    DatasetError, RecipeError, ClusterError or StorageError for what can't work, MovedError if another process moved the
    champion meanwhile, and BudgetError once `options.max_hours` are over.
    """
    options = options or RetrainOptions()
    # Bad arguments fail here, before anything is written.
    source, workspace = resolve_uris(source, workspace)
    check_folder(workspace, "workspace")
    recipe = make_recipe(recipe) if isinstance(recipe, str) else recipe
    with ExitStack() as stack:
        try:
            held = stack.enter_context(_workspace_lease(workspace, options.wait, progress))
        except DatasetError as error:
            return Outcome("busy", str(error))
        notifier = Notifier(workspace, options.channels())
        notifier.begin()
        try:
            with time_budget(options.max_hours) as budget:
                # Only now: no other run can change the workspace any more.
                delete_finished(workspace)
                reviewed = _reviewed(workspace, options, notifier)
                plan = _settled(plan_retraining(source, workspace, recipe, options), options, progress)
                if plan.latest and not plan.has_work and not options.force:
                    outcome = _unchanged(plan)
                else:
                    plan = _started(plan)
                    if on_start is not None:
                        on_start(plan)
                    outcome = _decided(plan, Stages(plan, options, held, budget, progress).run())
        except Exception as error:  # a defect or a dead worker, too: nobody else tells of it at night
            _tell_failure(notifier, error, workspace, options.metrics)
            raise
        _tell(notifier, outcome, workspace, options.metrics)  # here no budget can end a run that has decided
    return replace(outcome, review=reviewed)


def _reviewed(workspace: str, options: RetrainOptions, notifier: Notifier) -> Review:
    """Reviews the models in use, again if a concurrent review has moved an alias meanwhile: it holds no lease."""
    for number in range(1, _REVIEWS + 1):
        try:
            reviewed = review(registry_uri(workspace), options.live, notifier.reviewed)
            break
        except MovedError as error:
            if number == _REVIEWS:
                raise
            log.info("%s; the review is repeated", error)
    if options.on_review is not None:
        options.on_review(reviewed)
    return reviewed


def _started(plan: Plan) -> Plan:
    """Returns the plan of the run that is started, or that goes on."""
    interrupted = interrupted_run(plan.run.workspace)
    run = resume_or_start(plan.run)
    return replace(plan, run=run, resumed=interrupted is not None and interrupted.id == run.id)


def _tell(notifier: Notifier, outcome: Outcome, workspace: str, metrics: str | None) -> None:
    if outcome.decision:
        notifier.decided(outcome.decision)
    notifier.ended(outcome.status, outcome.message)
    report_nights(workspace, metrics)


def _tell_failure(notifier: Notifier, error: Exception, workspace: str, metrics: str | None) -> None:
    notifier.failed(error)
    if not isinstance(pipeline_error(error), UnavailableError):  # the workspace may be away, too
        report_nights(workspace, metrics)


def _unchanged(plan: Plan) -> Outcome:
    assert plan.latest is not None
    latest = plan.latest["night"]
    stopped = ", which drift stopped; --force trains nevertheless" if plan.latest.get("status") == STOPPED else ""
    return Outcome("unchanged", f"nothing to do: {plan.run.source} and the recipe are those of run {latest}{stopped}")


def _decided(plan: Plan, decision: dict[str, Any]) -> Outcome:
    status: Status = decision.get("status") or ("promoted" if decision["promote"] else "kept")
    return Outcome(status, decision["reason"], plan.run, decision)


def _settled(plan: Plan, options: RetrainOptions, progress: Progress) -> Plan:
    """Returns the plan with a recipe. If there is none to keep, the images are ingested, and one is chosen for them."""
    if plan.settings is not None:
        return plan
    start = time.perf_counter()
    data = ingest_source(plan.run, options, progress)
    seconds = {"ingest": time.perf_counter() - start}
    chosen = chosen_settings(plan.run.dataset, data, options.training, options.changes)
    return replace(plan.with_settings(chosen), seconds=seconds)


@contextmanager
def _workspace_lease(workspace: str, wait: bool, progress: Progress) -> Iterator[lease.Lease]:
    """Holds the workspace's lease. Raises DatasetError if a live process holds it, unless `wait`."""
    place = files.join(workspace, _LEASE_NAME)
    with ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(lease.hold_lease(place, workspace, progress))
                break
            except DatasetError:
                if not wait:
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)
        yield held
