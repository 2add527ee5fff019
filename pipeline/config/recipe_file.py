"""Recipe files, YAML or JSON: whole recipes, or `base: NAME or FILE` and what differs from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from pipeline.config.builtin import recipes
from pipeline.config.choices import unknown_choice
from pipeline.config.documentation import field_help
from pipeline.config.fields import check_field, expected, field_types, read_value, with_fields
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import NESTED, recipe_from_json
from pipeline.core.errors import RecipeError
from pipeline.storage import files

BASE = "base"
_ENDINGS = (".json", ".yaml", ".yml")
_OF_RUN = "config.json"
_WIDTH = 120


def is_file(name: str) -> bool:
    """Whether a recipe's name is that of a file, or of a run's folder, rather than of a preset."""
    return name.lower().endswith(_ENDINGS) or "/" in name or files.exists(files.join(files.absolute(name), _OF_RUN))


def change(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with fields changed, and what follows from them. given: {dotted name: value}; None is a value.

    `epochs` switches `fit_seconds` off, and shortens a warm-up of more than a quarter of them. `image_size_px` and
    `evaluate_size_px` take the sizes of evaluation along in proportion. A field that is given stays as given.
    """
    following: dict[str, Any] = {}
    if "epochs" in given:
        following = {"fit_seconds": 0.0, "warmup_epochs": min(recipe.warmup_epochs, given["epochs"] / 4)}
    if {"image_size_px", "evaluate_size_px"} & given.keys():
        following |= _sizes(recipe, given)
    return with_fields(recipe, {**following, **given})


def _sizes(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes of evaluation for given sizes. A recipe that evaluates at 146 of 128 px keeps that ratio."""
    size = given.get("image_size_px", recipe.image_size_px)
    evaluate = given.get("evaluate_size_px", round(recipe.evaluate_size_px * size / recipe.image_size_px))
    before, now = recipe.evaluate_size_px or recipe.image_size_px, evaluate or size
    return {"evaluate_size_px": evaluate, "evaluate_resize_px": round(recipe.evaluate_resize_px * now / before)}


def read_recipe(uri: str) -> Recipe:
    """Returns the recipe of a file, a whole one or `base:` and what differs, or of a run's folder.

    A recipe with a base has the file's name, unless it gives one. Raises RecipeError with the file and what is wrong.
    """
    return _read(uri, ())


def _read(uri: str, above: tuple[str, ...]) -> Recipe:
    """Returns the recipe of a file. above: the files that name this one as their base, for circles."""
    if uri in above:
        raise RecipeError(f"recipe={above[0]}: its bases form a circle: {' -> '.join([*above, uri])}; break it")
    if not uri.lower().endswith(_ENDINGS):
        if not files.exists(files.join(uri, _OF_RUN)) and files.exists(uri):
            raise RecipeError(f"recipe={uri}: neither a file {', '.join(_ENDINGS)} nor the folder of a run; rename it")
        uri = files.join(uri, _OF_RUN)
    values = _load(uri)
    values = values.get("recipe", values) if isinstance(values, dict) else values
    try:
        if not isinstance(values, dict) or BASE not in values:
            return _whole(values)
        base = _base(uri, values[BASE], (*above, uri))
        stem = files.basename(uri).rpartition(".")[0]
        changes = {name: _typed(name, value) for name, value in _flat(values) if name != BASE}
        return change(base, {"name": stem, **changes})
    except RecipeError as error:
        if str(error).startswith("recipe="):  # of a base
            raise
        raise RecipeError(f"recipe={uri}: holds no recipe of this version: {error}") from error


def _base(uri: str, name: Any, above: tuple[str, ...]) -> Recipe:
    if not isinstance(name, str):
        raise RecipeError(f"base={name!r}: give the name of a recipe, or a file")
    if name in recipes:
        return recipes[name]
    if not (name.lower().endswith(_ENDINGS) or "/" in name):
        raise RecipeError(unknown_choice(BASE, name, tuple(recipes)))
    absolute = "://" in name or name.startswith("/")
    return _read(name if absolute else files.join(uri.rpartition("/")[0], name), above)


def _load(uri: str) -> Any:
    """Returns the content of a file. Raises RecipeError if it doesn't exist, or is neither YAML nor JSON."""
    if not files.exists(uri):
        raise RecipeError(f"recipe={uri}: no such file")
    try:
        text = files.read_bytes(uri)
    except OSError as error:  # a folder, or a file of somebody else
        raise RecipeError(f"recipe={uri}: can't be read ({error.strerror or error}); give a file") from error
    try:
        if uri.lower().endswith(".json"):
            return json.loads(text, object_pairs_hook=_once)
        return yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if uri.lower().endswith(".json") else "YAML"
        text_of_error = " ".join(str(error).split())
        raise RecipeError(f"recipe={uri}: holds no recipe: not {kind} ({text_of_error})") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loads plain values; a name that is given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        """Returns the mapping of a node."""
        self.flatten_mapping(node)
        return _once(
            [(self.construct_object(key, True), self.construct_object(value, True)) for key, value in node.value]
        )


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if str(name) in values:
            raise ValueError(f"{name} is given twice")
        values[str(name)] = value
    return values


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yields (dotted name, value); an empty map, or none, stands for a whole."""
    for name, value in values.items():
        if name in NESTED and isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _typed(name: str, value: Any) -> Any:
    """Returns a field's value as the field's type. YAML reads 1e-3 as a text, and some write 0.3,1 for a pair."""
    check_field(name)
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if value is None or isinstance(value, str):
        return read_value(name, "none" if value is None else value)
    if isinstance(value, bool | int | float):
        read = read_value(name, str(value))
        return value if type(read) is float and type(value) is int else read
    raise RecipeError(f"{name}={value!r}: must be {expected(field_types()[name])}")


def _whole(values: Any) -> Recipe:
    """Returns the recipe of all its fields. Texts that say numbers are numbers, as YAML's 1e-3."""
    if not isinstance(values, dict):
        raise RecipeError("it has no fields; write FIELD: VALUE, one a line, such as base: digits and epochs: 20")
    if "name" not in values and "model" not in values:
        raise RecipeError(
            "base is missing; say base: NAME, or give all fields (name, model ...: see --show-recipe NAME)"
        )
    types = field_types()

    def numbers(part: dict[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: read_value(prefix + name, value)
            if isinstance(value, str) and types.get(prefix + name) is float
            else value
            for name, value in part.items()
        }

    inner = {name: numbers(values[name], f"{name}.") for name in NESTED if isinstance(values.get(name), dict)}
    return recipe_from_json(numbers(values, "") | inner)


def recipe_yaml(recipe: Recipe) -> str:
    """Returns a whole recipe as YAML that `read_recipe` reads, each field with its first sentence of documentation."""
    lines: list[str] = []
    for name, value in asdict(recipe).items():
        if isinstance(value, dict):
            lines.append(_line(name, "", field_help(Recipe, name)))
            lines += [_line(f"  {key}", each, field_help(NESTED[name], key)) for key, each in value.items()]
        else:
            lines.append(_line(name, value, field_help(Recipe, name)))
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any, text: str) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    said = "" if value == "" else yaml.safe_dump(plain, default_flow_style=True, width=10_000).partition("\n")[0]
    code = f"{name}: {said}".rstrip()
    room = _WIDTH - max(len(code), 44) - 4
    return f"{code:<44}  # {text if len(text) <= room else text[:room].rpartition(' ')[0] + ' ...'}"
