"""Configuration of a training run: recipes, their presets and their documentation, checked on construction.

Names and values come in: a preset's name, fields to change, or JSON. Frozen dataclasses go out; each field is
documented at the field. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.config.augment import Augment
    from pipeline.config.documentation import field_docs, field_help
    from pipeline.config.presets import make_recipe, recipes
    from pipeline.config.recipe import Recipe, SizeRamp
    from pipeline.config.recipe_file import read_recipe
    from pipeline.config.recipe_json import recipe_from_json
    from pipeline.config.sampling import ProxyFilter, Sampling

__all__ = [
    "Augment",
    "ProxyFilter",
    "Recipe",
    "Sampling",
    "SizeRamp",
    "field_docs",
    "field_help",
    "make_recipe",
    "read_recipe",
    "recipe_from_json",
    "recipes",
]
__getattr__ = lazy(
    __name__,
    {
        "augment": ("Augment",),
        "documentation": ("field_docs", "field_help"),
        "presets": ("make_recipe", "recipes"),
        "recipe": ("Recipe", "SizeRamp"),
        "recipe_file": ("read_recipe",),
        "recipe_json": ("recipe_from_json",),
        "sampling": ("ProxyFilter", "Sampling"),
    },
)
