"""Recipe and first weights of a retraining run: given, those of an earlier run, or a choice for the data.

A run that isn't given a recipe keeps the champion's, so that champion and challenger differ by their data alone. Only
where there is no champion is one chosen, by the rules of `train` (`training.automatic`), and the decision of that run
records it for the next ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_file import change
from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import Manifest
from pipeline.models import checkpoint
from pipeline.models.pretrained.at_hand import named_weights
from pipeline.retraining import registry
from pipeline.retraining.workspace import (
    RetrainingRun,
    decision_of,
    interrupted_run,
    night_of,
    night_uri,
    read_latest,
    registry_uri,
)
from pipeline.storage import files
from pipeline.training.automatic.settings import automatic_recipe
from pipeline.training.automatic.weights import PRETRAINED_NAME
from pipeline.training.workflow import TrainOptions


@dataclass(frozen=True)
class RunSettings:
    """What a retraining run trains with."""

    recipe: Recipe
    """The recipe, before the normalisation of published weights replaces its own."""
    pretrained: str | None
    """Weights to start from, as `TrainOptions.pretrained`; a file by its absolute URI."""
    origin: str = ""
    """Where the recipe comes from, in words; empty for one that was given."""


def given_settings(recipe: Recipe | str, pretrained: str | None) -> RunSettings:
    """Returns the settings of a run that is given its recipe."""
    return RunSettings(make_recipe(recipe) if isinstance(recipe, str) else recipe, absolute_weights(pretrained))


def kept_settings(
    workspace: str, fingerprint: str, pretrained: str | None, changes: Mapping[str, Any]
) -> RunSettings | None:
    """Returns the settings of an earlier run that a run without a recipe keeps, None if there is none to keep.

    They are the champion's. Where there is none they are those of a run on the same state of the source, one that was
    interrupted or the newest one, so that nothing is trained twice.

    workspace: absolute URI. fingerprint: of the source. pretrained: weights that are asked for, None for those of the
    earlier run. changes: fields of the recipe that are asked for, by dotted name.
    """
    found = _of_champion(workspace) or _of_same_source(workspace, fingerprint)
    if found is None:
        return None
    weights = found.pretrained if pretrained is None else absolute_weights(pretrained)
    return replace(found, recipe=change(found.recipe, changes), pretrained=weights)


def chosen_settings(dataset: str, data: Manifest, options: TrainOptions, changes: Mapping[str, Any]) -> RunSettings:
    """Returns the settings that are chosen for a data set and this machine; the reasons are logged.

    dataset: absolute URI. options, changes: what is asked for.
    """
    recipe, pretrained = automatic_recipe(
        dataset, data, None, options.pretrained, lambda each: change(each, changes), options.device, options.hold_out
    )
    return RunSettings(recipe, absolute_weights(pretrained), "chosen for these images")


def check_start(run: RetrainingRun, settings: RunSettings) -> None:
    """Raises RecipeError if a recipe fits its last layer to pretrained weights and the run starts from none."""
    fit = settings.recipe.fit_head
    if fit == "none" or settings.pretrained not in (None, "none") or (run.from_champion and run.champion):
        return
    if run.from_champion:
        raise RecipeError(
            f"fit_head={fit} needs pretrained weights, and from-champion finds no champion yet; for the first run give "
            "--pretrained timm instead of --from-champion, or set fit_head=none"
        )
    raise RecipeError(f"fit_head={fit} needs pretrained weights; add --pretrained timm, or set fit_head=none")


def absolute_weights(pretrained: str | None) -> str | None:
    """Returns a value of `--pretrained` with the absolute URI of a file: a later run may start in another folder."""
    if pretrained in (None, "none") or named_weights(str(pretrained)) is not None:
        return pretrained
    return files.absolute(str(pretrained))


def _of_same_source(workspace: str, fingerprint: str) -> RunSettings | None:
    run, latest = interrupted_run(workspace), read_latest(workspace)
    if run is not None and run.fingerprint == fingerprint:
        return RunSettings(recipe_from_json(run.recipe), run.pretrained, "that of the interrupted run")
    if latest is not None and latest["fingerprint"] == fingerprint:
        return RunSettings(
            recipe_from_json(latest["recipe"]), latest.get("pretrained"), f"that of run {latest['night']}"
        )
    return None


def _of_champion(workspace: str) -> RunSettings | None:
    """Returns the settings that the champion was trained with, whoever trained it; None without a champion."""
    place = registry_uri(workspace)
    champion = registry.current(place, registry.CHAMPION)
    if champion is None:
        return None
    night, origin = night_of(workspace, champion.version), "the champion's"
    decision, run = night and decision_of(workspace, night), interrupted_run(workspace)
    if run is not None and run.id == night:  # it was killed after the promotion
        return RunSettings(recipe_from_json(run.recipe), run.pretrained, origin)
    if decision and "pretrained" in decision:
        return RunSettings(recipe_from_json(decision["recipe"]), decision["pretrained"], origin)
    # A run of an older version, or a model that was added by hand. With weights from a file the recipe stays as it is,
    # so it has to be the one that their normalisation went into.
    recipe = checkpoint.read_output(registry.version_uri(place, champion.version)).recipe
    weights = files.join(night_uri(workspace, night), "run", PRETRAINED_NAME) if night else ""
    if weights and files.exists(weights):
        return RunSettings(recipe_from_json(recipe), weights, origin)
    return RunSettings(recipe_from_json(decision["recipe"] if decision else recipe), None, origin)
