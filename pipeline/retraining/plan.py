"""Options of a retraining run, and the plan: what a run would do now."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.errors import RecipeError, SourceError
from pipeline.dataset import manifest
from pipeline.ingestion.sources import hub, located
from pipeline.ingestion.sources.source import VAL_SHARE
from pipeline.retraining import registry
from pipeline.retraining.classes import ClassRules
from pipeline.retraining.decision.drift import OnDrift, Thresholds
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.review import Review
from pipeline.retraining.notices.notifier import Channels
from pipeline.retraining.notices.webhook import Webhook, read_secret
from pipeline.retraining.overview.estimate import Estimate, estimate_run
from pipeline.retraining.overview.metrics import check_target
from pipeline.retraining.overview.nights import read_nights
from pipeline.retraining.replay import check_replay
from pipeline.retraining.run_settings import RunSettings, check_start, given_settings, kept_settings
from pipeline.retraining.workspace import RetrainingRun, interrupted_run, is_unchanged, read_latest, registry_uri
from pipeline.storage import files
from pipeline.training.workflow import TrainOptions

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class RetrainOptions:
    """How a retraining run is carried out, beside source, workspace and recipe. Raises RecipeError for bad values."""

    gate: Gate = field(default_factory=Gate)
    """Limits of the promotion test."""

    drift: Thresholds = field(default_factory=Thresholds)
    """Distances above which drift is reported."""

    on_drift: OnDrift = "warn"
    """What such a distance does: "warn", or "stop" to end the run before it trains, with the champion as it is."""

    training: TrainOptions = field(default_factory=TrainOptions)
    """How the challenger is trained: seed, device, trackers and the like. Its device and minutes to wait hold for the
    evaluations, too."""

    workers: int | None = None
    """Processes for training and for evaluation; 0 for this process, None for one on each GPU."""

    from_champion: bool = False
    """Whether training starts from the champion's weights."""

    classes: ClassRules = field(default_factory=ClassRules)
    """What is said of classes that are renamed, merged or removed, and what new ones must reach."""

    replay_share: float | None = None
    """With `from_champion`: an epoch holds the rows that are new since the champion's data set, and old ones as this
    share of the whole, in [0, 1). So training takes as long as what is new. None: every epoch holds all rows."""

    new_recipe: bool = False
    """Whether a run that isn't given a recipe chooses one for the data as they are now, instead of keeping the
    champion's."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields that differ from the recipe that is kept or chosen, by dotted name: {"augment.mixup_alpha": 0.2}."""

    layout: str = "auto"
    """Layout of the source, as in `ingestion.Source`."""

    md5: str | None = None
    """Expected MD5 of a CIFAR archive, as in `ingestion.Source`."""

    val_share: float = VAL_SHARE
    """Share of each class that is held out as val where the source has no val, as in `ingestion.Source`."""

    image_column: str | None = None
    """Column of a table that names the files, as in `ingestion.Source`."""

    label_column: str | None = None
    """Column of a table that holds the labels, as in `ingestion.Source`."""

    max_quarantined: float = 0.1
    """Unusable files that ingest may leave out; below 1, a share of all. With more, the run ends before it trains."""

    shadow: bool = False
    """Whether a challenger that passes the gate becomes the alias `candidate`, on which a review decides once it has
    answered in the champion's shadow (`predict --shadow candidate`), instead of `champion`."""

    live: LiveRule = field(default_factory=LiveRule)
    """Limits of the review of candidate and champion, with which each run begins."""

    on_review: Callable[[Review], None] | None = None
    """Called with the result of that review, which holds whatever becomes of the run; None for nobody."""

    force: bool = False
    """Whether to run although source and recipe are those of the newest finished run, or drift would stop the run."""

    wait: bool = False
    """Whether to wait for a concurrent run in the workspace to end instead of returning."""

    max_hours: float | None = None
    """Time budget; None for no limit."""

    cost_per_hour: float = 0.0
    """Price of the machines, in any currency, for estimates and reports; 0 for none."""

    mlflow: str | None = None
    """URI of an MLflow server to mirror the registry in; None for none. `default_trackers` logs the training there."""

    webhook: str | None = None
    """URL that gets each decision and failure as JSON, by POST; None for none. Messages are signed if there is a
    secret: in the file below, or else in the variable IMAGE_PIPELINE_WEBHOOK_SECRET."""

    webhook_secret_file: str | None = None
    """File with the secret of the webhook's signatures, as `webhook.read_secret` takes it; None for the variable."""

    on_decision: str | None = None
    """Command that is called with the decision as JSON on its standard input, for a minute at most; None for none."""

    metrics: str | None = None
    """File NAME.prom of node-exporter, or URL of a Pushgateway, that gets the metrics of the workspace's runs; None for
    none."""

    def __post_init__(self) -> None:
        if self.metrics is not None:
            check_target(self.metrics)
        check_replay(self.replay_share, self.from_champion)
        if self.from_champion and self.training.pretrained:
            raise RecipeError("from-champion and pretrained both name the first weights; give one of them")
        if self.from_champion and self.new_recipe:
            raise RecipeError(
                "new-recipe may choose another network than that of the weights of from-champion; give one of them"
            )
        if self.max_hours is not None and self.max_hours <= 0:
            raise RecipeError(f"max-hours={self.max_hours:g} must be above 0")
        if not 0 <= self.cost_per_hour < float("inf"):
            raise RecipeError(f"cost-per-hour={self.cost_per_hour:g} must be 0 or more, and finite")
        self.channels()

    def channels(self) -> Channels:
        """Returns who is told of decisions. Raises RecipeError for a value that can't work."""
        webhook = Webhook(self.webhook, read_secret(self.webhook_secret_file)) if self.webhook else None
        return Channels(webhook, self.on_decision, self.mlflow)


@dataclass(frozen=True)
class Plan:
    """What a call of `retrain` would do now."""

    run: RetrainingRun
    """The run; its recipe and ID are final only where `settings` are known."""
    settings: RunSettings | None
    """Recipe and first weights; None if they are chosen once the images are ingested."""
    latest: dict[str, Any] | None
    """The decision of the newest finished run, None if there is none."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What stages have taken that had to come before the plan."""
    estimate: Estimate | None = None
    """What the run will take; None if no run before tells."""
    resumed: bool = False
    """Whether the run was interrupted before and goes on."""

    @property
    def has_work(self) -> bool:
        """Whether source or recipe differ from the newest finished run's, or a run since was interrupted."""
        return not self.run.attempt or interrupted_run(self.run.workspace) is not None

    def with_settings(self, settings: RunSettings) -> "Plan":
        """Returns the plan with recipe and first weights. Raises RecipeError if the recipe needs other weights."""
        recipe = json.loads(json.dumps(recipe_to_json(settings.recipe)))  # as it is read back: lists for tuples
        check_start(self.run, settings)
        latest = self.latest
        unchanged = is_unchanged(latest, self.run.fingerprint, recipe)
        attempt = latest.get("attempt", 0) + 1 if latest and unchanged else 0
        run = replace(self.run, recipe=recipe, pretrained=settings.pretrained, attempt=attempt)
        return replace(self, run=run, settings=settings, estimate=_estimate(run))


def _estimate(run: RetrainingRun) -> Estimate | None:
    data = manifest.load(run.dataset) if manifest.is_dataset(run.dataset) else None
    rows = {name: split.rows for name, split in data.splits.items()} if data else None
    return estimate_run(
        read_nights(run.workspace), run.recipe["name"], run.recipe["epochs"], rows, run.replay_share is not None
    )


def resolve_uris(source: StrPath, workspace: StrPath) -> tuple[str, str]:
    """Returns both as absolute URIs. Raises SourceError if the source doesn't exist."""
    place = os.fspath(source) if hub.is_hub(os.fspath(source)) else files.absolute(os.fspath(source)).rstrip("/")
    if not located.exists(place):
        raise SourceError(f"source={place}: no such file or folder; give an existing path or URI")
    return place, files.absolute(os.fspath(workspace)).rstrip("/")


def plan_retraining(
    source: StrPath, workspace: StrPath, recipe: Recipe | str | None = None, options: RetrainOptions | None = None
) -> Plan:
    """Returns what `retrain` would do with the same arguments; writes nothing.

    Raises SourceError if the source doesn't exist, RecipeError for an unknown recipe or a value that can't work.
    """
    options = options or RetrainOptions()
    if recipe is not None and options.new_recipe:
        raise RecipeError("recipe and new-recipe both say what to train; give one of them")
    source, workspace = resolve_uris(source, workspace)
    fingerprint, champion = located.fingerprint(source), registry.current(registry_uri(workspace), registry.CHAMPION)
    latest = read_latest(workspace)
    rules = options.classes.remembering(latest and latest.get("classes"))
    run = RetrainingRun(
        workspace, source, fingerprint, {}, champion, options.gate, options.from_champion,
        classes=None if rules.is_default else rules, replay_share=options.replay_share,
    )  # fmt: skip
    plan, pretrained = Plan(run, None, latest), options.training.pretrained
    if recipe is not None:
        return plan.with_settings(given_settings(recipe, pretrained))
    kept = None if options.new_recipe else kept_settings(workspace, fingerprint, pretrained, options.changes)
    return plan.with_settings(kept) if kept else plan
