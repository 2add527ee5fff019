"""Recipes by name or by file, with fields changed."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.builtin import UnknownRecipeError, recipes
from pipeline.config.choices import check_choice
from pipeline.config.fields import field_names
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_file import change, is_file, read_recipe
from pipeline.storage import files

__all__ = ["UnknownRecipeError", "make_recipe", "recipes", "with_changes"]


def make_recipe(name: str, **changes: Any) -> Recipe:
    """Returns a recipe with fields changed, for example `make_recipe("resnet50", epochs=18, model="resnet18")`.

    name: a preset's, or the path or URI of a file that holds a recipe or says what differs from another (`.yaml`,
    `.json`), or of a run. changes: as for `with_changes`.

    Raises RecipeError for an unknown name or field, with the nearest ones, or a value that can't work.
    """
    recipe = recipes[name] if name in recipes or not is_file(name) else read_recipe(files.absolute(name))
    return with_changes(recipe, **changes)


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    """Returns a recipe with fields changed, as `make_recipe` does.

    changes: fields of Recipe, or of what it holds, `**{"augment.hue": 0.1}`; None leaves a field as it is, and
    `proxy_filter="none"`, `size_ramp="none"` and the like switch it off. `epochs` switches `fit_seconds` off and
    shortens a warm-up that would take more than a quarter of them; `image_size_px` and `evaluate_size_px` take the
    sizes of evaluation along in proportion. A field that is given stays as given.
    """
    given: Mapping[str, Any] = {key: value for key, value in changes.items() if value is not None}
    for key in given:
        check_choice("field", key, field_names())
    return change(recipe, given)
