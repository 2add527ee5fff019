"""Recipes as the values of their fields, as in JSON: checked, and made with the same numbers as were written."""

import re
import typing
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin

import msgspec

from pipeline.config.augment import Augment
from pipeline.config.choices import check_choice
from pipeline.config.recipe import Recipe, SizeRamp
from pipeline.config.sampling import ProxyFilter, Sampling
from pipeline.core.errors import RecipeError

# Fields that came later. They are left out where they have their default, so that the identities of earlier runs stay.
_LATER = (
    "early_stop_epochs", "sampling", "whitening_bias_rate", "schedule_end", "proxy_filter", "target_threshold",
    "stochastic_depth", "adaptive_clip", "layer_decay", "schedule_by", "trust_clip", "sum_classes",
    "zero_init_residual", "augment.rand_deviation", "fit_head", "frozen_epochs", "thaw_epochs",
    "corrected_weight_decay", "ema_warmup_power", "sam_radius",
)  # fmt: skip
NESTED: dict[str, type] = {
    "augment": Augment, "size_ramp": SizeRamp, "sampling": Sampling, "proxy_filter": ProxyFilter,
}  # fmt: skip
"""The fields that have fields of their own, and their classes."""

_PATH = re.compile(r" - at `\$\.([\w.]+)")


def recipe_from_json(values: dict[str, Any]) -> Recipe:
    """Returns the recipe whose `dataclasses.asdict` became `values` by way of JSON, where tuples are lists.

    Raises RecipeError with field, value and remedy if a field is unknown, is missing, or has a value of another type or
    out of range.
    """
    # msgspec ignores unknown fields of a dataclass; a misspelt one must not silently take its default.
    for name, cls in (("", Recipe), *NESTED.items()):
        part = values.get(name) if name and isinstance(values, dict) else values
        for each in part if isinstance(part, dict) else ():
            check_choice(f"field of {name}" if name else "field", each, tuple(field.name for field in fields(cls)))
    try:
        recipe: Recipe = msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, RecipeError):  # raised by a class's own checks
            raise error.__cause__ from None
        raise _explained(error, values) from error
    kept: Recipe = _as_written(recipe, values)
    return kept


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe's values by name, as a run's files hold them; `recipe_from_json` takes them.

    Fields that didn't exist when the first runs were made are left out where they have their default.
    """
    defaults = {each.name: each.default for each in fields(Recipe)} | {"sampling": asdict(Sampling())}
    values = {**asdict(recipe), "augment": _without_later("augment", asdict(recipe.augment), asdict(Augment()))}
    return _without_later("", values, defaults)


def _without_later(outer: str, values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns the values without later fields that have their default. outer: the field that holds them, or ""."""
    return {
        name: value
        for name, value in values.items()
        if f"{outer}.{name}".removeprefix(".") not in _LATER or value != defaults[name]
    }


def _as_written(value: Any, written: Any) -> Any:
    """Returns the value with the integers of its JSON, which msgspec makes floats: a run's files keep their bytes."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {name: _as_written(getattr(value, name), part) for name, part in written.items()}
        return replace(value, **parts)
    if isinstance(value, tuple):
        return tuple(_as_written(*pair) for pair in zip(value, written, strict=True))
    return written if type(value) is float and type(written) is int else value


def _explained(error: msgspec.ValidationError, values: Any) -> RecipeError:
    """Returns the error with the value, and, for a misspelt name, the nearest ones."""
    text = str(error).replace("`", "")
    found = _PATH.search(str(error))
    if found is None:
        return RecipeError(f"{text}; correct the recipe's JSON")
    cls: Any = Recipe
    value, hint = values, cls
    for name in found[1].split("."):
        value, hint = value[name], typing.get_type_hints(cls)[name]
        cls = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), cls)
    if get_origin(hint) is Literal and isinstance(value, str):
        try:
            check_choice(found[1], value, get_args(hint))
        except RecipeError as unknown:
            return unknown
    return RecipeError(f"{found[1]}={value!r}: {text.partition(' - at ')[0].lower()}; correct the recipe's JSON")
