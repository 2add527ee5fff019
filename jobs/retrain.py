"""Trains on changed data and makes the new model live if it is better.

One retraining run ingests the source if it has changed, trains, compares the new model (the challenger) with the live
one (the champion) on images that neither was trained on, and moves the alias `champion` if the promotion gate passes.

With --shadow the new model becomes the alias `candidate`, which answers in the champion's shadow first
(`jobs/predict.py --shadow candidate`). Each run begins with a review of candidate and champion (`jobs/registry.py
review`), which may promote or drop the one, and take back the other.

Exit status: 0 if a model was promoted or became candidate, or there was nothing to do, 3 if the gate kept the champion
(0 with --kept-is-ok), 4 if drift stopped the run before it trained (--on-drift stop), 5 if the review took the champion
back, whatever came after but a signal, 2 for a user error, 1 if a storage failed or the budget is used up. The same
command continues an interrupted run.

Examples:
    uv run jobs/retrain.py --source photos/ --workspace work/
    uv run jobs/retrain.py --source s3://bucket/raw --workspace s3://bucket/work --max-hours 6 --from-champion
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import math
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jobs.arguments import training
from jobs.arguments.live import RETURNED, LiveArgs, review_lines
from jobs.arguments.source import RawArgs
from jobs.terminal import command
from pipeline.core.errors import RecipeError
from pipeline.storage import files
from pipeline.storage.places import check_folder

if TYPE_CHECKING:  # they load torch, which takes seconds, and not every error needs it
    from pipeline.retraining.classes import ClassRules
    from pipeline.retraining.decision.promotion_gate import Gate
    from pipeline.retraining.live.review import Review
    from pipeline.retraining.plan import Plan, RetrainOptions
    from pipeline.retraining.run import Outcome
    from pipeline.training.workflow import TrainOptions

KEPT, STOPPED_BY_DRIFT = 3, 4
RESUME_HINT = "the same command continues where it stopped"


@dataclass(frozen=True)
class DataArgs:
    """Where the images come from."""

    source: Annotated[str | None, command.option("raw images, as jobs/ingest.py takes them", "URI")] = None


@dataclass(frozen=True)
class OutputArgs:
    """Where everything is written and reported."""

    workspace: Annotated[
        str | None, command.option("folder or prefix of a bucket for data sets, runs and the registry", "URI")
    ] = None
    webhook: Annotated[
        str | None, command.option("URL that gets each decision and failure as JSON, by POST", "URL", "none")
    ] = None
    webhook_secret_file: Annotated[
        str | None,
        command.option("file with the key of its signatures", "FILE", "the variable IMAGE_PIPELINE_WEBHOOK_SECRET"),
    ] = None
    on_decision: Annotated[
        str | None,
        command.option("command that gets the decision as JSON on its standard input", "COMMAND", "none"),
    ] = None
    metrics: Annotated[
        str | None,
        command.option("file NAME.prom of node-exporter, or Pushgateway, for metrics of the runs", "FILE|URL", "none"),
    ] = None


@dataclass(frozen=True)
class GateArgs:
    """When the challenger replaces the champion."""

    level: Annotated[float, command.option("significance level of one night's test, at most", "P", "0.05")] = 0.05
    false_promotions_per_year: Annotated[
        float, command.option("promotions by chance to be expected a year, at most; inf: no limit", "X", "1")
    ] = 1.0
    lock_box: Annotated[
        float, command.option("share of val, in [0, 1), that only promotions look at, once each", "X", "0: none")
    ] = 0.0
    minimum_gain: Annotated[float, command.option("least gain of top-1, in [0, 1]", "X", "0")] = 0.0
    recall_drop: Annotated[
        float, command.option("largest significant fall of any class's recall, in [0, 1]", "X", "0.02")
    ] = 0.02
    calibration_rise: Annotated[float, command.option("largest rise of the expected calibration error", "X", "0.1")] = (
        0.1
    )
    latency_ratio: Annotated[float, command.option("largest ratio of the seconds per image", "X", "1.5")] = 1.5

    def gate(self) -> "Gate":
        """Returns the gate. Raises RecipeError for a value out of range."""
        from pipeline.retraining.decision.promotion_gate import Gate

        per_year = self.false_promotions_per_year
        return Gate(**{**vars(self), "false_promotions_per_year": None if per_year == math.inf else per_year})


@dataclass(frozen=True)
class DriftArgs:
    """How far the images may differ from those that the champion was trained on."""

    on_drift: Annotated[
        Literal["warn", "stop"],
        command.option("whether drift is reported, or ends the run before it trains", "warn|stop", "warn"),
    ] = "warn"
    drift_class_mix: Annotated[
        float, command.option("largest total variation distance of the class shares, in [0, 1]", "X", "0.1")
    ] = 0.1
    drift_brightness: Annotated[
        float, command.option("largest Kolmogorov-Smirnov distance of the images' brightness, in [0, 1]", "X", "0.1")
    ] = 0.1
    drift_features: Annotated[
        float, command.option("largest shift of the champion's features, in standard deviations", "X", "0.5")
    ] = 0.5


@dataclass(frozen=True)
class ClassArgs:
    """Classes that change between the champion and the source."""

    classes: Annotated[
        str | None, command.option("renamed and merged classes: CSV with the columns old,new, or JSON", "FILE", "none")
    ] = None
    allow_removed: Annotated[
        tuple[str, ...],
        command.option("classes that may be gone from the source; others end the run", "NAME...", "none"),
    ] = ()
    new_class_recall: Annotated[
        float | None, command.option("least recall of a new class, lower bound, in [0, 1)", "X", "that of a guess")
    ] = None
    shared_drop: Annotated[
        float,
        command.option("with other classes, most that top-1 may fall on those that both models know", "X", "0.02"),
    ] = 0.02

    def rules(self) -> "ClassRules":
        """Returns what is said of classes that change. Raises RecipeError or SourceError for a file that can't be."""
        from pipeline.retraining.classes import ClassRules, read_class_file

        renamed, removed = read_class_file(files.absolute(self.classes)) if self.classes else ({}, [])
        both = [name for name in self.allow_removed if name in renamed]
        if both:
            raise RecipeError(f"allow-removed={both[0]}: --classes calls it {renamed[both[0]]!r}; give one of them")
        allowed = tuple(sorted({*removed, *self.allow_removed}))
        return ClassRules(renamed, allowed, self.new_class_recall, self.shared_drop)


@dataclass(frozen=True)
class BudgetArgs:
    """How long the run may take. It ends with status 1 when the smaller budget is used up."""

    max_hours: Annotated[float | None, command.option("budget in hours", "H", "no limit")] = None
    max_cost: Annotated[float | None, command.option("budget in money; needs --cost-per-hour", "MONEY", "no limit")] = (
        None
    )
    cost_per_hour: Annotated[float, command.option("price of the machines", "MONEY", "0")] = 0.0

    def hours(self) -> float | None:
        """Returns the smaller budget in hours, None for no limit. Raises RecipeError for one that can't be."""
        limits = [] if self.max_hours is None else [self.max_hours]
        if self.max_cost is not None:
            if self.cost_per_hour <= 0:
                raise RecipeError("max-cost needs --cost-per-hour MONEY")
            limits.append(self.max_cost / self.cost_per_hour)
        if any(limit <= 0 for limit in limits):
            raise RecipeError(f"max-hours and max-cost must be above 0, not {min(limits):g} hours")
        return min(limits, default=None)


@dataclass(frozen=True)
class RetrainArgs:
    """When to run, and what training starts from."""

    force: Annotated[bool, command.option("run although nothing has changed, or drift would stop the run", "")] = False
    wait: Annotated[bool, command.option("wait for a concurrent run to end instead of exiting", "")] = False
    dry_run: Annotated[bool, command.option("show the plan; do nothing", "")] = False
    from_champion: Annotated[bool, command.option("start training from the champion's weights", "")] = False
    replay_share: Annotated[
        float | None,
        command.option("with --from-champion: share of old images in an epoch, beside all new ones", "X", "all images"),
    ] = None
    new_recipe: Annotated[
        bool, command.option("choose a recipe for the images as they are now, instead of keeping the champion's", "")
    ] = False
    shadow: Annotated[
        bool, command.option("a model that passes the gate becomes candidate, to answer in the champion's shadow", "")
    ] = False
    kept_is_ok: Annotated[bool, command.option("exit status 0 instead of 3 if the champion is kept", "")] = False


@dataclass(frozen=True, kw_only=True)
class Args(training.TrainingArgs):
    """Runs once; a schedule (infra/schedules/) runs it every night. --mlflow mirrors the registry, too.

    Without --recipe the champion's is kept; the first run chooses one for the images and this machine, as train does.
    """

    data: Annotated[DataArgs, command.group("data")] = DataArgs()
    raw: Annotated[RawArgs, command.group("data")] = field(default_factory=lambda: RawArgs(max_quarantined=0.1))
    output: Annotated[OutputArgs, command.group("output")] = OutputArgs()
    promotion: Annotated[GateArgs, command.group("promotion gate")] = GateArgs()
    drift: Annotated[DriftArgs, command.group("drift")] = DriftArgs()
    classes: Annotated[ClassArgs, command.group("changing classes")] = ClassArgs()
    live: Annotated[LiveArgs, command.group("models in use")] = field(default_factory=LiveArgs)
    budget: Annotated[BudgetArgs, command.group("advanced")] = BudgetArgs()
    retraining: Annotated[RetrainArgs, command.group("advanced")] = RetrainArgs()

    def retrain_options(self, train_options: "TrainOptions") -> "RetrainOptions":
        """Returns the options of the run. Raises RecipeError for a value out of range."""
        from pipeline.retraining.decision.drift import Thresholds
        from pipeline.retraining.plan import RetrainOptions

        return RetrainOptions(
            gate=self.promotion.gate(),
            drift=Thresholds(self.drift.drift_class_mix, self.drift.drift_brightness, self.drift.drift_features),
            on_drift=self.drift.on_drift,
            classes=self.classes.rules(),
            training=train_options,
            workers=self.workers.workers,
            from_champion=self.retraining.from_champion,
            replay_share=self.retraining.replay_share,
            new_recipe=self.retraining.new_recipe,
            changes={} if self.recipe.recipe else self.recipe.changes(),
            layout=self.raw.layout,
            md5=self.raw.md5,
            val_share=self.raw.val_share,
            image_column=self.raw.image_column,
            label_column=self.raw.label_column,
            max_quarantined=self.raw.max_quarantined,
            force=self.retraining.force,
            shadow=self.retraining.shadow,
            live=self.live.make(),
            wait=self.retraining.wait,
            max_hours=self.budget.hours(),
            cost_per_hour=self.budget.cost_per_hour,
            mlflow=self.track.mlflow,
            webhook=self.output.webhook,
            webhook_secret_file=self.output.webhook_secret_file,
            on_decision=self.output.on_decision,
            metrics=self.output.metrics,
        )


def main(args: Args) -> None:
    """Runs once, or shows the plan, and prints the outcome."""
    if args.data.source is None or args.output.workspace is None:
        raise RecipeError(f"--{'source' if args.data.source is None else 'workspace'} URI is missing")
    source, workspace = args.data.source, args.output.workspace
    if not args.retraining.dry_run:
        check_folder(workspace, "workspace")  # before anything is loaded
    with command.loading():
        from pipeline.retraining.plan import plan_retraining
        from pipeline.retraining.run import retrain

    checked, train_options = args.check(training.UNKNOWN_YET)
    recipe = checked if args.recipe.recipe else None
    options = args.retrain_options(train_options)
    if args.retraining.dry_run:
        print_plan(plan_retraining(source, workspace, recipe, options), options)
        return
    reviews: list[Review] = []
    options = replace(options, on_review=lambda review: reviews.append(print_review(review)))
    try:
        with command.Display() as display:
            outcome = retrain(source, workspace, recipe, options, display, lambda plan: print_plan(plan, options))
    except Exception as error:  # whatever it was, the status must say that the champion went back
        if not any(each.returned for each in reviews):
            raise
        command.print_failure(error)
        sys.exit(RETURNED)
    if outcome.run is None:
        hint = "; leaving (--wait waits for it)" if outcome.status == "busy" else ""
        command.console.print(f"{outcome.message}{hint}")
    else:
        print_outcome(outcome)
    if outcome.review.returned:
        sys.exit(RETURNED)
    if outcome.status == "kept" and not args.retraining.kept_is_ok:
        sys.exit(KEPT)
    if outcome.status == "stopped":
        sys.exit(STOPPED_BY_DRIFT)


def print_review(review: "Review") -> "Review":
    """Prints what the review before the run found and did, if there was anything to look at, and returns the review."""
    if not review.unused:
        command.print_table("\nreview of the models in use", review_lines(review))
    return review


def print_plan(plan: "Plan", options: "RetrainOptions") -> None:
    """Prints the inputs of a run before it starts, and what it will take."""
    run, latest, hours = plan.run, plan.latest, options.max_hours
    last = f"{sum(latest['seconds'].values()) / 3600:.2f} h" if latest else "there was none"
    command.print_table(
        f"\nretraining run {run.id}" if plan.settings else "\na retraining run",
        [
            ("source", f"{run.source}, {'unchanged' if run.attempt else 'new or changed'}"),
            ("recipe", _recipe(plan)),
            ("champion", run.champion.version if run.champion else "none yet"),
            *([("classes", run.classes.text)] if run.classes and run.classes.text else []),
            ("gate", f"{_level(run.gate)}, gain of {100 * run.gate.minimum_gain:g} points or more, no class "
                     f"more than {100 * run.gate.recall_drop:g} points down"),
            ("budget", "none" if hours is None else f"{hours:g} h"),
            ("the last run took", last),
            ("expected", _expected(plan, options.cost_per_hour)),
        ],
    )  # fmt: skip


def _expected(plan: "Plan", cost_per_hour: float) -> str:
    """Returns in words what a run will take, and what that rests on."""
    from pipeline.retraining.overview.times import time_and_money

    if plan.estimate is None:
        return "unknown: no finished run of this recipe"
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.estimate.seconds.items())
    return f"{time_and_money(plan.estimate.total, cost_per_hour)}: {stages} (estimate: {plan.estimate.basis})"


def _recipe(plan: "Plan") -> str:
    """Returns a run's recipe in words: its name, where it comes from, and the weights that training starts from."""
    if plan.settings is None:
        return "chosen once the images are ingested"
    name, origin = plan.settings.recipe.name, plan.settings.origin
    weights = f"weights {plan.settings.pretrained}" if plan.settings.pretrained else ""
    if plan.run.champion and plan.run.from_champion:
        weights = "from the champion's weights"
    return ", ".join(filter(None, (f"{name} ({origin})" if origin else name, weights)))


def _level(gate: "Gate") -> str:
    limit = gate.false_promotions_per_year
    words = f" or less (false promotions limited to {limit:g} a year)" if limit else " every night"
    return f"level {gate.level:g}{words}"


def print_outcome(outcome: "Outcome") -> None:
    """Prints the decision and where its files are."""
    run, decision = outcome.run, outcome.decision
    assert run is not None
    command.print_table(
        f"\nretraining run {run.id}",
        [
            (outcome.status.upper(), outcome.message),
            ("champion", _champion_after(outcome)),
            *([("candidate", decision["challenger"])] if outcome.status == "candidate" else ()),
            *([("classes", decision["classes"]["text"])] if decision.get("classes", {}).get("text") else []),
            *([] if outcome.status == "stopped" else [("compared on", _compared_on(decision))]),
            *((check["name"], f"{'ok' if check['passed'] else 'NO'}  {check['text']}") for check in decision["checks"]),
            *([("level", decision["sequential"]["text"])] if decision.get("sequential") else []),
            *(("drift", warning) for warning in (decision["drift"] or {}).get("warnings", ())),
            ("time", ", ".join(f"{name} {value:.0f} s" for name, value in decision["seconds"].items())),
            *_planned(decision),
            ("decision", files.join(run.folder, "decision.json")),
            ("page", files.join(run.folder, "decision.html")),
        ],
    )  # fmt: skip


def _planned(decision: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the line that compares what was expected with what came; none if nothing was expected."""
    from pipeline.retraining.overview.times import planned_text, taken_text

    planned = planned_text(decision["plan"])
    return [("in all", f"{taken_text(decision['seconds'], decision['plan'])}, planned {planned}")] if planned else []


def _compared_on(decision: dict[str, Any]) -> str:
    rows = f"{decision['fair_rows']:,} of {decision['rows']:,} validation images"
    shared = ", of classes that both know" if decision.get("classes", {}).get("text") else ""
    return f"{rows}: those that neither model was trained on{shared}"


def _champion_after(outcome: "Outcome") -> str:
    decision = outcome.decision
    return (decision["challenger"] if outcome.status == "promoted" else decision["champion_before"]) or "none"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
