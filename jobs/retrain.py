"""Looks whether the data have changed, trains on them, and makes the new model live if, and only if, it is better.

uv run jobs/retrain.py --source URI --workspace URI --recipe NAME

Ends with 0 if a model was promoted or there was nothing to do, 3 if the gate kept the champion (0 with --kept-is-ok),
2 for what its user has to mend, 1 if it failed or its budget ran out. The same command goes on where one before it was
killed.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from jobs import command, training
from pipeline.cluster import resources
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import DatasetError, RecipeError, SourceError
from pipeline.dataset.manifest import is_dataset, load
from pipeline.ingestion.api import ingest
from pipeline.ingestion.sources import LAYOUTS, Source
from pipeline.storage import files, lease
from pipeline.training.trackers.mlflow import check_mlflow

if TYPE_CHECKING:
    from pipeline.retraining.workspace import RetrainingRun

KEPT = 3
_WEBHOOK_SECONDS, _LOOK_AGAIN_SECONDS, _INTERRUPT_AGAIN_SECONDS = 10, 2, 30


@dataclass(frozen=True)
class Args:
    """Flags. Everything lies below the workspace: data sets by version, nights, the registry."""

    source: Annotated[str | None, command.option("raw images, as jobs/ingest.py takes them", "URI")] = None
    workspace: Annotated[str | None, command.option("a folder, or a prefix of a bucket", "URI")] = None
    recipe: Annotated[str, command.option("what to train, or a .json of one", "NAME", "cifar10")] = "cifar10"
    epochs: Annotated[int | None, command.option("times each image is seen", "N", "the recipe's")] = None
    from_champion: Annotated[bool, command.option("begin with the champion's weights", "")] = False
    seed: Annotated[int, command.option("of weights, order and augmentation", "N", "0")] = 0
    workers: Annotated[int | None, command.option("processes; 0: this one", "N", "one a GPU")] = None
    device: Annotated[resources.Device, command.option(resources.DEVICE_HELP, "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, command.option(resources.WAIT_HELP, "N", "0")] = 0
    cache: Annotated[str | None, command.option(resources.CACHE_HELP, "DIR", "none")] = None
    force: Annotated[bool, command.option("also if nothing has changed", "")] = False
    wait: Annotated[bool, command.option("for another one at work here, instead of leaving", "")] = False
    dry_run: Annotated[bool, command.option("show the plan, do nothing", "")] = False
    level: Annotated[float, command.option("how often one that is no better may pass, at most", "P", "0.05")] = 0.05
    minimum_gain: Annotated[float, command.option("of top-1, in [0, 1]", "X", "0")] = 0.0
    recall_drop: Annotated[float, command.option("most that any class may lose for certain", "X", "0.02")] = 0.02
    calibration_rise: Annotated[float, command.option("most that the calibration error may grow", "X", "0.1")] = 0.1
    latency_ratio: Annotated[float, command.option("most that an image's time may grow", "X", "1.5")] = 1.5
    max_quarantined: Annotated[float, command.option("files that may be left out; below 1: a share", "N", "0")] = 0.0
    max_hours: Annotated[float | None, command.option("stop before", "H", "no limit")] = None
    max_cost: Annotated[float | None, command.option("stop before, at --cost-per-hour", "MONEY", "no limit")] = None
    cost_per_hour: Annotated[float, command.option("of what it runs on", "MONEY", "0")] = 0.0
    kept_is_ok: Annotated[bool, command.option("end with 0, not 3, where the champion stays", "")] = False
    webhook: Annotated[str | None, command.option("gets the decision as JSON, by POST", "URL", "none")] = None
    mlflow: Annotated[str | None, command.option("an MLflow registry that mirrors ours", "URI", "none")] = None
    layout: Annotated[str, command.option(f"auto, {', '.join(LAYOUTS)}", "NAME", "auto")] = "auto"

    def hours(self) -> float | None:
        """Returns the limit of both. Raises RecipeError."""
        limits = [] if self.max_hours is None else [self.max_hours]
        if self.max_cost is not None:
            if self.cost_per_hour <= 0:
                raise RecipeError("max-cost needs --cost-per-hour MONEY")
            limits.append(self.max_cost / self.cost_per_hour)
        if any(limit <= 0 for limit in limits):
            raise RecipeError(f"max-hours and max-cost must be above 0, not {min(limits):g} hours")
        return min(limits, default=None)


def main(args: Args) -> None:
    """One night."""
    from pipeline.retraining import workspace as states
    from pipeline.retraining.promotion_gate import Gate

    hours, recipe = args.hours(), make_recipe(args.recipe, epochs=args.epochs)
    gate = Gate(args.level, args.minimum_gain, args.recall_drop, args.calibration_rise, args.latency_ratio)
    if args.webhook and not args.webhook.startswith(("http://", "https://")):
        raise RecipeError(f"webhook={args.webhook} must begin with http:// or https://")
    resources.resolve_cache_folder(args.cache)  # before anything is done
    if args.mlflow:
        check_mlflow(args.mlflow)
    if args.source is None or args.workspace is None:
        raise RecipeError(f"--{'source' if args.source is None else 'workspace'} URI is missing")
    source, workspace = (files.absolute(uri).rstrip("/") for uri in (args.source, args.workspace))
    if not files.exists(source):
        raise SourceError(f"source={source}: no such file or folder; give an existing path or URI")
    if args.dry_run:
        latest = states.read_latest(workspace)
        _print_plan(_planned(args, source, workspace, recipe, gate, latest), hours, latest)
        return
    over = threading.Event()
    try:
        with _alone(args, workspace) as alone, _budget(hours, over):
            _work(args, source, workspace, recipe, gate, hours, alone, over)
    except KeyboardInterrupt:
        if not over.is_set():
            raise
        command.console.print(f"the budget of {hours:g} h is used up; the same command goes on from here")
        sys.stdout.flush()
        os._exit(1)  # all is given back; threads of an interrupted Ray may crash what Python does at its end


def _work(
    args: Args, source: str, workspace: str, recipe: Recipe, gate: Any, hours: float | None, alone: lease.Lease,
    over: threading.Event,
) -> None:  # fmt: skip
    from pipeline.retraining import workspace as states

    latest = states.read_latest(workspace)
    night = _planned(args, source, workspace, recipe, gate, latest)
    if latest and night.attempt and not args.force and not states.is_interrupted(workspace):
        command.console.print(f"nothing to do: {source} and the recipe are those of night {latest['night']}")
        return
    night = states.resume_or_start(night)
    _print_plan(night, hours, latest)
    decision = _night(args, night, recipe, alone, over)
    _print_decision(night, decision)
    if args.mlflow:
        _mirror(args.mlflow, night)
    if args.webhook:
        _notify(args.webhook, decision)
    if not decision["promote"] and not args.kept_is_ok:
        sys.exit(KEPT)


def _planned(
    args: Args, source: str, workspace: str, recipe: Recipe, gate: Any, latest: dict[str, Any] | None
) -> "RetrainingRun":
    from pipeline.retraining import registry
    from pipeline.retraining import workspace as states

    fingerprint, values = files.fingerprint(source), json.loads(json.dumps(asdict(recipe)))
    same = states.is_unchanged(latest, fingerprint, values)
    champion = registry.current(files.join(workspace, "registry"), registry.CHAMPION)
    attempt = (latest or {}).get("attempt", 0) + 1 if same else 0
    return states.RetrainingRun(workspace, source, fingerprint, values, champion, gate, args.from_champion, attempt)


# --- the stages --------------------------------------------------------------------------------------------------


def _night(
    args: Args, night: "RetrainingRun", recipe: Recipe, alone: lease.Lease, over: threading.Event
) -> dict[str, Any]:
    from pipeline.evaluation.comparison import compare_predictions
    from pipeline.evaluation.pages.comparison import write_comparison
    from pipeline.evaluation.pages.report import write_report
    from pipeline.evaluation.runner import EvaluateJob
    from pipeline.evaluation.workers import Workers, evaluation_session
    from pipeline.retraining import drift, promotion, registry, workspace

    seconds: dict[str, float] = {}
    fence = registry.take_fence(night.registry, registry.CHAMPION)
    with _stage("ingest", seconds, over):
        if not is_dataset(night.dataset):
            with command.Display() as display:
                source = Source(night.source, args.layout)
                ingest(source, night.dataset, max_quarantined=args.max_quarantined, progress=display)
        data = training.describe_dataset(night.dataset)
    alone.check()
    run = files.join(night.folder, "run")
    with _stage("train", seconds, over):
        _train(args, night, recipe, run)
    alone.check()
    nobody = EvaluateJob("", "", "")
    workers = Workers(args.workers, args.device, args.wait_minutes)
    with command.Display() as display, evaluation_session(nobody, workers, display) as job:
        with _stage("evaluate", seconds, over):
            challenger, values = promotion.evaluate_model(night, run, "challenger", job)
            champion = None
            if night.champion is not None:
                champion, _ = promotion.evaluate_model(night, night.champion_uri, "champion", job)
        with _stage("drift", seconds, over):
            others = promotion.earlier_datasets(night)
            drifted = promotion.measure_drift(night, others[0], job, drift.Thresholds()) if others else None
    fair = promotion.unseen_rows(night.dataset, data, others)
    latency = promotion.measure_latency(night)
    decision = promotion.decide_promotion(champion, challenger, data.classes, fair, night.gate, latency)
    report = write_report(files.join(night.folder, "challenger"), data, values, challenger)
    comparison = None
    if night.champion is not None:
        before, after = (files.join(night.folder, name) for name in ("champion", "challenger"))
        compared, pair = compare_predictions(before, after, night.dataset, data)
        _, comparison = write_comparison(night.folder, night.dataset, data, compared, pair)
    parent = night.champion.version if night.champion and night.from_champion else ""
    version = registry.add(night.registry, run, files.join(night.folder, "challenger"), parent)
    alone.check()
    more = {
        "fair_rows": int(fair.sum()),
        "rows": len(fair),
        "drift": drifted and drifted.as_json(),
        "seconds": seconds,
        "report": report,
        "comparison": comparison,
    }
    return workspace.publish(night, decision, version.id, fence, more)


@contextmanager
def _stage(name: str, seconds: dict[str, float], over: threading.Event) -> Iterator[None]:
    """Counts the seconds of a stage, which doesn't begin where the budget is used up."""
    if over.is_set():
        raise KeyboardInterrupt
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _train(args: Args, night: "RetrainingRun", recipe: Recipe, run: str) -> None:
    from pipeline.models.checkpoint import MODEL_NAME
    from pipeline.training.job import TrainJob, weights_of

    gpus = resources.count_gpus()
    workers = gpus if args.workers is None else args.workers
    use_gpu = resources.workers_use_gpus(args.device, workers, gpus)
    begin = None
    if args.from_champion and night.champion:
        begin = weights_of("champion", files.join(night.champion_uri, MODEL_NAME))
    cache = resources.resolve_cache_folder(args.cache)
    job = TrainJob(night.dataset, run, recipe, args.seed, workers, use_gpu=use_gpu, pretrained=begin, cache=cache)
    training.train_here(job, args.wait_minutes)


# --- one at a time, within a budget ------------------------------------------------------------------------------


@contextmanager
def _alone(args: Args, workspace: str) -> Iterator[lease.Lease]:
    """Holds the workspace's lease; leaves with 0, or waits, where another one does."""
    place = files.join(workspace, "lease.json")
    with ExitStack() as stack:
        held: lease.Lease | None = None
        while held is None:
            try:
                with command.Display() as display:
                    held = stack.enter_context(lease.hold_lease(place, workspace, display))
            except DatasetError as error:
                if not args.wait:
                    command.console.print(f"{error}; leaving (--wait waits for it)")
                    sys.exit(0)
                time.sleep(_LOOK_AGAIN_SECONDS)
        yield held


@contextmanager
def _budget(hours: float | None, over: threading.Event) -> Iterator[None]:
    """Sets the event and interrupts the process, as Ctrl-C does, when the hours are over.

    It does so once more after half a minute, for Ray may lose an interrupt while it starts, and no stage begins then.
    """
    ended = threading.Event()

    def stop() -> None:
        assert hours is not None
        wait_seconds = 3600 * hours
        while not ended.wait(wait_seconds):
            over.set()
            os.kill(os.getpid(), signal.SIGINT)
            wait_seconds = _INTERRUPT_AGAIN_SECONDS

    if hours is not None:
        threading.Thread(target=stop, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


# --- what it says ------------------------------------------------------------------------------------------------


def _print_plan(night: "RetrainingRun", hours: float | None, latest: dict[str, Any] | None) -> None:
    last = sum(latest["seconds"].values()) / 3600 if latest else 0.0
    command.print_table(
        f"\nnight {night.id}",
        [
            ("source", f"{night.source}, {'as before' if night.attempt else 'new or changed'}"),
            ("recipe", night.recipe["name"] + (", from the champion's weights" if night.from_champion else "")),
            ("champion", night.champion.version if night.champion else "none yet"),
            ("gate", f"level {night.gate.level:g}, gain of {100 * night.gate.minimum_gain:g} points or more, no class "
                     f"more than {100 * night.gate.recall_drop:g} points down"),
            ("budget", "none" if hours is None else f"{hours:g} h"),
            ("the last one took", f"{last:.2f} h" if latest else "there was none"),
        ],
    )  # fmt: skip


def _print_decision(night: "RetrainingRun", decision: dict[str, Any]) -> None:
    lines = [
        ("PROMOTED" if decision["promote"] else "KEPT", decision["reason"]),
        ("champion", (decision["challenger"] if decision["promote"] else decision["champion_before"]) or "none"),
        ("judged on", f"{decision['fair_rows']:,} of {decision['rows']:,} validation images: neither trained on them"),
        *(
            (f"{check['name']}", f"{'ok' if check['passed'] else 'NO'}  {check['text']}")
            for check in decision["checks"]
        ),
        *(("drift", warning) for warning in (decision["drift"] or {}).get("warnings", ())),
        ("time", ", ".join(f"{name} {value:.0f} s" for name, value in decision["seconds"].items())),
        ("decision", files.join(night.folder, "decision.json")),
        ("page", files.join(night.folder, "decision.html")),
    ]
    command.print_table(f"\nnight {night.id}: {load(night.dataset).name}", lines)


def _mirror(uri: str, night: "RetrainingRun") -> None:
    """Brings the MLflow registry up to date. One that isn't there changes nothing, and is said."""
    from mlflow.exceptions import MlflowException

    from pipeline.retraining.mlflow_mirror import mirror

    try:
        mirror(night.registry, uri)
    except MlflowException as error:
        text = " ".join(str(error).split())[:200]
        command.console.print(f"mlflow didn't take it ({text}); the decision stands", style="bold yellow")


def _notify(url: str, decision: dict[str, Any]) -> None:
    """Posts the decision. One that isn't taken changes nothing, and is said."""
    body = json.dumps({name: value for name, value in decision.items() if name != "recipe"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=_WEBHOOK_SECONDS).close()
    except OSError as error:
        command.console.print(f"the webhook didn't take it ({error}); the decision stands", style="bold yellow")


RESUME_HINT = "the same command continues where it stopped"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
