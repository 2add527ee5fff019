"""The fields of a recipe by dotted name, such as `augment.hue`: their types, values read from text, and changes."""

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pipeline.config.augment import Augment
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import NESTED
from pipeline.config.sampling import Sampling
from pipeline.core.errors import RecipeError

_NONE, _TRUE, _FALSE = ("none", "null"), ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@cache
def field_types() -> dict[str, Any]:
    """Returns {dotted name: type} of every field that holds a plain value, in the order of definition.

    `augment`, `size_ramp` and the like stand for themselves, too: their type is None, for only "none" can be said of a
    whole.
    """
    hints: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Recipe).items():
        if name in NESTED:
            hints[name] = type(None)
            hints |= {f"{name}.{inner}": each for inner, each in typing.get_type_hints(NESTED[name]).items()}
        else:
            hints[name] = hint
    return hints


def field_names() -> tuple[str, ...]:
    """Returns the dotted names of all fields of a recipe."""
    return tuple(field_types())


def check_field(name: str) -> None:
    """Raises RecipeError, with the nearest names, unless a recipe has a field of this dotted name."""
    names = field_names()
    if name in names:
        return
    short = {each.rpartition(".")[2]: each for each in names}  # who writes `hue` means `augment.hue`
    near = difflib.get_close_matches(name.lower(), [*names, *short], n=4, cutoff=0.5)
    near = [name.lower()] if name.lower() in short else near
    near = list(dict.fromkeys(short.get(each, each) for each in near))[:3]
    remedy = f"did you mean {' or '.join(near)}?" if near else "--show-recipe NAME lists all fields"
    raise RecipeError(f"{name}: a recipe has no such field; {remedy}")


def read_value(name: str, text: str) -> Any:
    """Returns the value of a field, by its dotted name, that a text says: `96`, `3/4`, `true`, `none`, `0.3,1`.

    Raises RecipeError with field, value and what is expected.
    """
    hint = field_types()[name]
    try:
        return _read(text.strip(), hint)
    except ValueError:
        raise RecipeError(f"{name}={text}: must be {expected(hint, text)}") from None


def _read(text: str, hint: Any) -> Any:
    """Returns the value of type `hint` that a text says. Raises ValueError if it says none."""
    if get_origin(hint) is types.UnionType or get_origin(hint) is typing.Union:
        if text.lower() in _NONE:
            return None
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is Literal and text in get_args(hint):
        return text
    if get_origin(hint) is tuple:
        parts = text.strip("()[]").replace(",", " ").split()
        return tuple(_read(*pair) for pair in zip(parts, get_args(hint), strict=True))
    if hint is type(None) and text.lower() in _NONE:
        return None
    if hint is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if hint is int:
        return int(text)
    if hint is float:
        return _number(text)
    if hint is str and text:
        return text
    raise ValueError(text)


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    number = float(above) / (float(below) or math.nan) if slash else float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def expected(hint: Any, text: str = "") -> str:
    """Returns in words what a field of this type takes. text: what was given, for the nearest of several names."""
    if get_origin(hint) is types.UnionType or get_origin(hint) is typing.Union:
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return f"{expected(inner, text)}, or none"
    if get_origin(hint) is Literal:
        names = get_args(hint)
        near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.4)
        return f"one of {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''}"
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} numbers with a comma between, such as 0.3,1"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return words.get(hint, "none, or set its fields one by one")


def with_fields(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with fields changed. changes: {dotted name: value}; a whole comes before its fields.

    `size_ramp.from_px` and the like make a size ramp where the recipe has none; the text "none" for a whole leaves it
    out. Raises RecipeError for an unknown field, or a value that can't work.
    """
    for name in changes:
        check_field(name)
    plain = {name: value for name, value in changes.items() if "." not in name}
    plain |= {name: read_value(name, plain[name]) for name in NESTED if isinstance(plain.get(name), str)}
    for outer, whole_of in (("augment", Augment), ("sampling", Sampling)):
        if plain.get(outer, getattr(recipe, outer)) is None:
            plain[outer] = whole_of()
    for outer, cls in NESTED.items():
        inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{outer}.")}
        if inner:
            whole = plain.get(outer, getattr(recipe, outer))
            plain[outer] = replace(whole, **inner) if whole is not None else _new(outer, cls, inner)
    return replace(recipe, **plain) if plain else recipe


def _new(outer: str, cls: Any, values: dict[str, Any]) -> Any:
    """Returns a nested value that the recipe doesn't have yet. Raises RecipeError if a field is missing."""
    needed = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
    missing = [f"{outer}.{name}" for name in needed if name not in values]
    if missing:
        raise RecipeError(f"{outer}: the recipe has none yet; set {', '.join(missing)}, too")
    return cls(**values)
