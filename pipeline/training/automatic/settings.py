"""Recipe and first weights of a run that isn't given a recipe: those that its folder records, else a choice."""

import logging
from collections.abc import Callable

from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_from_json
from pipeline.dataset.manifest import Manifest
from pipeline.models.pretrained.at_hand import named_weights
from pipeline.storage import files
from pipeline.training.automatic.choose import choose_recipe, differing_fields
from pipeline.training.automatic.facts import data_facts
from pipeline.training.automatic.machine import this_machine
from pipeline.training.automatic.weights import PRETRAINED_NAME, weights_picker

_log = logging.getLogger(__name__)

_DECIDING = ("model", "image_size_px", "global_batch_size", "epochs", "fit_head")
"""Fields that others depend on: where one is given, the others are chosen for it."""


def automatic_recipe(
    dataset: str,
    data: Manifest,
    run: str | None = None,
    pretrained: str | None = None,
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    device: str = "auto",
    hold_out: float = 0.0,
) -> tuple[Recipe, str | None]:
    """Returns the recipe of a run that isn't given one, and the weights that it starts from, as `--pretrained` is.

    The recipe that `run` records, if it is a run's folder; else a choice for the data set and this machine, whose
    reasons are logged. pretrained: the weights that are asked for. change: what flags change of a recipe.
    """
    if run is not None and files.exists(config := files.join(run, "config.json")):
        return _recorded(run, files.read_json(config), pretrained, change)
    facts, machine = data_facts(dataset, data, hold_out), this_machine(device)
    pick = weights_picker(pretrained, machine)
    by_name = pretrained not in (None, "none") and named_weights(str(pretrained)) is not None
    choice = choose_recipe(facts, machine, pick, {"pretrained": by_name})
    changed = differing_fields(choice.recipe, change(choice.recipe))
    asked = {name: changed[name] for name in _DECIDING if name in changed}
    if asked:
        choice = choose_recipe(facts, machine, pick, {**asked, "pretrained": by_name})
    for line in choice.reasons:
        _log.info("%s", line)
    return change(choice.recipe), pretrained or choice.pretrained


def _recorded(
    run: str, config: dict[str, object], pretrained: str | None, change: Callable[[Recipe], Recipe]
) -> tuple[Recipe, str | None]:
    """Returns recipe and weights of a run that was begun before."""
    recipe = recipe_from_json(config["recipe"])  # type: ignore[arg-type]
    _log.info("recipe %s, as recorded in %s", recipe.name, run)
    weights = files.join(run, PRETRAINED_NAME)
    if pretrained is None and config.get("pretrained") and files.exists(weights):
        pretrained = weights
    return change(recipe), pretrained
