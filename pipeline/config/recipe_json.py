"""Recipes as JSON: in a run's config.json, in files written by the hyper-parameter search, or written by hand."""

import json
from typing import Any

from pipeline.config.augment import Augment
from pipeline.config.recipe import Recipe, SizeRamp
from pipeline.core.errors import RecipeError
from pipeline.storage import files


def recipe_from_json(values: dict[str, Any]) -> Recipe:
    """Returns the recipe whose `dataclasses.asdict` became `values` by way of JSON, where tuples are lists."""

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    ramp = values["size_ramp"]
    own = {"augment": Augment(**tuples(values["augment"])), "size_ramp": SizeRamp(**ramp) if ramp else None}
    return Recipe(**{**tuples(values), **own})


def read_recipe(uri: str) -> Recipe:
    """Returns the recipe in a .json file. Raises RecipeError with what is wrong with it."""
    if not files.exists(uri):
        raise RecipeError(f"recipe={uri}: no such file")
    try:
        values = json.loads(files.read_bytes(uri))
        return recipe_from_json(values.get("recipe", values))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"recipe={uri}: holds no recipe of this version ({error})") from error
