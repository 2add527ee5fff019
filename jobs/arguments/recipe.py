"""The flags of a recipe: which one, what differs from it, and what there is."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

import tyro

from jobs.arguments.flags import option
from pipeline.config.choices import MODELS, LossName, OptimizerName, ScheduleName
from pipeline.config.documentation import field_help
from pipeline.config.fields import check_field, read_value
from pipeline.config.presets import make_recipe, recipes
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_file import change, recipe_yaml
from pipeline.core.errors import RecipeError

OF_RECIPE = "the recipe's"
SET_HELP = (
    "change any fields of the recipe, also nested ones: image_size_px=96 augment.mixup_alpha=0.2 size_ramp=none; "
    "--show-recipe lists them"
)
Changes = Annotated[tuple[tuple[str, ...], ...], option(SET_HELP, "FIELD=VALUE...", "none"), tyro.conf.UseAppendAction]


def names(literal: Any) -> str:
    """Returns the names of a Literal as a list for people."""
    return ", ".join(get_args(literal))


def recipe_option(name: str, value: str, choices: str = "") -> Any:
    """Returns the annotation of a flag that changes a field of the recipe; its help is the field's docstring."""
    text = field_help(Recipe, name)
    return option(f"{text}: {choices}" if choices else text, value, OF_RECIPE)


@dataclass(frozen=True)
class RecipeArgs:
    """The recipe, and changes to it."""

    recipe: Annotated[
        str | None, option("name (--list-recipes), a .yaml or .json file, or a run's folder", "NAME", "by the job")
    ] = None
    set: Changes = ()
    epochs: Annotated[int | None, recipe_option("epochs", "N")] = None
    global_batch_size: Annotated[int | None, recipe_option("global_batch_size", "N")] = None
    learning_rate: Annotated[float | None, recipe_option("learning_rate", "RATE")] = None
    model: Annotated[str | None, option(f"{', '.join(MODELS)}, or timm:NAME", "NAME", OF_RECIPE)] = None
    optimizer: Annotated[str | None, option(f"one of {names(OptimizerName)}", "NAME", OF_RECIPE)] = None
    schedule: Annotated[str | None, option(f"of the learning rate: {names(ScheduleName)}", "NAME", OF_RECIPE)] = None
    loss: Annotated[str | None, option(f"one of {names(LossName)}", "NAME", OF_RECIPE)] = None
    shuffle_run_rows: Annotated[int | None, recipe_option("shuffle_run_rows", "N")] = None
    list_recipes: Annotated[bool, option("print the recipes that there are, and end", "")] = False
    show_recipe: Annotated[
        str | None, option("print a recipe with all its fields, as YAML that --recipe takes, and end", "NAME", "none")
    ] = None

    def make(self, default: str | Recipe) -> Recipe:
        """Returns the recipe with the flags' changes. default: where --recipe gives none. Raises RecipeError."""
        if self.recipe is not None:
            default = make_recipe(self.recipe)
        return change(make_recipe(default) if isinstance(default, str) else default, self.changes())

    def changes(self) -> dict[str, Any]:
        """Returns the changed fields by dotted name. Raises RecipeError for an unknown field or value."""
        flags = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NO_FIELDS}
        return merged({name: value for name, value in flags.items() if value is not None}, self.set)

    def shown(self) -> str | None:
        """Returns the text to print instead of running, None for none. Needs no data. Raises RecipeError as `make`."""
        if self.list_recipes:
            return recipe_list()
        changes = self.changes()  # their errors are said at once, before anything that takes seconds is loaded
        return None if self.show_recipe is None else recipe_yaml(change(make_recipe(self.show_recipe), changes))


_NO_FIELDS = ("recipe", "set", "list_recipes", "show_recipe")


def merged(flags: dict[str, Any], lines: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Returns {dotted name: value} of flags and of all lines `FIELD=VALUE` of --set.

    Raises RecipeError, naming both, where two say different values, and for a line that can't be read.
    """
    found = dict(flags)
    said = {name: f"--{name.replace('_', '-')} {value}" for name, value in flags.items()}
    if any(not each for each in lines):
        raise RecipeError("--set: its value is missing; give --set FIELD=VALUE, such as image_size_px=96")
    for line in (line for each in lines for line in each):
        name, equals, text = line.partition("=")
        if not equals:
            raise RecipeError(f"--set {line}: give FIELD=VALUE, such as image_size_px=96")
        check_field(name)
        value = read_value(name, text)
        if name in found and found[name] != value:
            raise RecipeError(f"{said[name]} and --set {line} contradict each other; leave one out")
        found[name], said[name] = value, f"--set {line}"
    return found


def recipe_list() -> str:
    """Returns the table of the recipes: name, network, size, epochs, batch, and what each is for."""
    table: list[tuple[str, ...]] = [("name", "model", "px", "epochs", "batch", "what it is")]
    for name, recipe in recipes.items():
        numbers = (recipe.image_size_px, recipe.epochs, recipe.global_batch_size)
        table.append((name, recipe.model, *map(str, numbers), _first_sentence(recipes.claim(name))))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, "", "--show-recipe NAME prints all fields of one, --set FIELD=VALUE changes them."])


def _first_sentence(text: str) -> str:
    return text.partition(": ")[0].removesuffix(".") if len(text) > 80 else text.removesuffix(".")
