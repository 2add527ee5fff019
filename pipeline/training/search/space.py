"""The search space: ranges and choices for fields of a recipe, and drawing values from them."""

import json
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import numpy as np

from pipeline.config.choices import check_choice
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_file import change
from pipeline.core.errors import RecipeError

Values = dict[str, Any]  # by the name of a recipe's field; "augment.NAME" for a field of its augmentation

# Fields that can't be drawn: the name, nested values, and what would make trials incomparable.
_NOT_SEARCHED = ("name", "augment", "size_ramp", "proxy_filter", "fit_seconds", "evaluate_resize_px")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, uniform on a linear or logarithmic scale.

    Search folders record the representation of this class, so its fields keep their names and order.
    """

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False  # integers only

    def draw(self, generator: np.random.Generator) -> float | int:
        """Returns a number in the range, rounded to 4 significant digits or to an integer."""
        low, high = (np.log(self.low), np.log(self.high)) if self.logarithmic else (self.low, self.high)
        drawn = float(generator.uniform(low, high))
        number = float(np.exp(drawn)) if self.logarithmic else drawn
        return round(number) if self.whole else float(f"{number:.4g}")


@dataclass(frozen=True)
class Choice:
    """A finite set of values with equal probability."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """Returns one of the values."""
        return self.values[int(generator.integers(len(self.values)))]


Space = dict[str, Range | Choice]


def default_space(recipe: Recipe) -> Space:
    """Returns a space around a recipe: rate and weight decay within a factor of 4, label smoothing from 0 to 0.2.

    The factors are a guess, not measured.
    """
    decay = recipe.weight_decay or 5e-4
    return {
        "learning_rate": Range(recipe.learning_rate / 4, recipe.learning_rate * 4, logarithmic=True),
        "weight_decay": Range(decay / 4, decay * 4, logarithmic=True),
        "label_smoothing": Range(0.0, 0.2),
    }


def parse_space(lines: tuple[str, ...], recipe: Recipe) -> Space:
    """Returns the space of lines "FIELD=LOW..HIGH", "FIELD=log:LOW..HIGH" and "FIELD=A,B,C".

    FIELD is a field of the recipe or "augment.NAME". Raises RecipeError for an unknown field or a malformed line.
    """
    return dict(_parse_line(line, recipe) for line in lines)


def draw_trials(space: Space, num_trials: int, recipe: Recipe, seed: int) -> list[Values]:
    """Returns the values of each trial. The first trial is the recipe itself.

    Raises RecipeError if a recipe can't have one of the values.
    """
    generator = np.random.default_rng(seed)
    trials = [{name: _current_value(recipe, name) for name in space}]
    trials += [{name: domain.draw(generator) for name, domain in space.items()} for _ in range(num_trials - 1)]
    for values in trials:
        _check_types(recipe, values)
        with_values(recipe, values)
    return trials


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """Returns the recipe with these fields replaced, and what follows from them, as by the flags of a training job.

    So the sizes of evaluation follow those of training. Raises RecipeError if a recipe can't have the values.
    """
    return change(recipe, values)


def _parse_line(line: str, recipe: Recipe) -> tuple[str, Range | Choice]:
    name, equals, text = line.partition("=")
    names = [f"augment.{field.name}" for field in fields(recipe.augment)]
    names += [field.name for field in fields(recipe) if field.name not in _NOT_SEARCHED]
    check_choice("space", name, tuple(names))
    usage = f"space={line!r}: give {name}=LOW..HIGH, {name}=log:LOW..HIGH or {name}=A,B,C"
    if not equals or not text:
        raise RecipeError(usage)
    if ".." not in text:
        return name, Choice(tuple(_parse_value(part.strip(), usage) for part in text.split(",")))
    low, high = (_parse_value(part, usage) for part in text.removeprefix("log:").split("..", 1))
    logarithmic = text.startswith("log:")
    if not all(isinstance(end, int | float) for end in (low, high)) or not low < high or (logarithmic and low <= 0):
        raise RecipeError(f"{usage}; LOW must be below HIGH, and above 0 for log")
    return name, Range(low, high, logarithmic, whole=type(_current_value(recipe, name)) is int)


def _current_value(recipe: Recipe, name: str) -> Any:
    return getattr(recipe.augment, name.removeprefix("augment.")) if "." in name else getattr(recipe, name)


def _parse_value(text: str, usage: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text  # a string, such as the name of an optimiser
    if isinstance(value, list | dict):
        raise RecipeError(usage)
    return value


def _check_types(recipe: Recipe, values: Values) -> None:
    # A dataclass doesn't check types, and a string in an integer field would fail in the middle of a search.
    for name, value in values.items():
        hints = get_type_hints(type(recipe.augment if "." in name else recipe))
        expected = hints[name.removeprefix("augment.")]
        for plain in (bool, int, float, str):
            is_number = plain is float and type(value) is int
            if expected is plain and type(value) is not plain and not is_number:
                raise RecipeError(f"space: {name}={value!r} must be of type {plain.__name__}")
