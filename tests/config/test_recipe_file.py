"""Recipe files: what differs from a base, whole recipes, and what is wrong with a file, in one line."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from pipeline.config.model_names import timm_names
from pipeline.config.presets import make_recipe, recipes, with_changes
from pipeline.config.recipe import SizeRamp
from pipeline.config.recipe_file import recipe_yaml
from pipeline.core.errors import RecipeError


@pytest.mark.parametrize("name", recipes)
def test_a_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_yaml(recipes[name]))
    assert make_recipe(str(path)) == recipes[name]
    assert json.dumps(asdict(make_recipe(str(path)))) == json.dumps(asdict(recipes[name]))


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "long.yaml").write_text(
        "base: imagenette-20\nepochs: 40\naugment: {mixup_alpha: 0.2, hue: 0.1}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "base: bases/long.yaml\nlearning_rate: 1e-3\naugment:\n  hue: 0\n  resized_crop_area: [0.5, 1]\n"
        "size_ramp: {from_px: 64, first_epoch: 1, last_epoch: 3}\n"
    )
    base = make_recipe("imagenette-20")
    mine = make_recipe(str(tmp_path / "mine.yaml"))
    augment = replace(base.augment, mixup_alpha=0.2, hue=0, resized_crop_area=(0.5, 1.0))
    assert mine == replace(
        base, name="mine", epochs=40, learning_rate=1e-3, augment=augment, size_ramp=SizeRamp(64, 1, 3)
    )
    (tmp_path / "flat.json").write_text('{"base": "mine.yaml", "name": "x", "size_ramp": null, "augment": null}')
    flat = make_recipe(str(tmp_path / "flat.json"))
    assert (flat.name, flat.size_ramp, flat.augment.changes_samples) == ("x", None, False)
    assert make_recipe(str(tmp_path / "mine.yaml"), epochs=2).epochs == 2


def test_a_run_has_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    values = json.loads(json.dumps({"recipe": asdict(recipes["digits"]), "seed": 0}))
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    for name in ("run", "run/config.json"):
        assert make_recipe(f"{tmp_path}/{name}") == recipes["digits"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: mine.yaml", "its bases form a circle: .*mine.yaml -> .*mine.yaml; break it"),
        ("base: imagenette", "base='imagenette' is unknown; did you mean imagenette-"),
        ("base: other.yaml", "other.yaml: no such file"),
        ("base: [3]", r"base=\[3\]: give the name of a recipe, or a file"),
        ("base: digits\nlearning_rte: 3", "learning_rte: a recipe has no such field; did you mean learning_rate"),
        ("base: digits\naugment: {hu: 3}", "augment.hu: a recipe has no such field; did you mean augment.hue"),
        ("base: digits\naugment: [3]", "augment=3: must be none, or set its fields one by one"),
        ("base: digits\nepochs: many", "epochs=many: must be a whole number"),
        ("base: digits\nepochs: 1.5", "epochs=1.5: must be a whole number"),
        ("base: digits\nepochs: true", "epochs=True: must be a whole number"),
        ("base: digits\nepochs: {a: 1}", "epochs={'a': 1}: must be a whole number"),
        ("base: digits\nepochs: 0", "epochs=0 must be 1 or more"),
        ("base: digits\nlearning_rate: .nan", "learning_rate=nan: must be a finite number"),
        ("base: digits\nepochs: 3\nepochs: 4", "epochs is given twice"),
        ("epochs: 3", "base is missing; say base: NAME, or give all fields"),
        ("base: [a", "not YAML"),
        ("", "it has no fields; write FIELD: VALUE"),
        ("- digits", "it has no fields; write FIELD: VALUE"),
        ("base: digits\n\tepochs: 3", "not YAML"),
        ("base: digits\n---\nbase: digits", "not YAML"),
        ("base: digits\n3: 4", "3: a recipe has no such field"),
        ("base: digits\noptimizer: AdamW", "optimizer=AdamW: must be one of .*did you mean adamw"),
        ("base: digits\npixel_mean: [0.5, 0.5]", "pixel_mean=0.5,0.5: must be 3 numbers"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_holds_no_recipe_is_named_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"^recipe={tmp_path}/.*{message}") as caught:
        make_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_called_like_a_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(RecipeError, match=r"can't be read \(.*is a directory"):
        make_recipe(str(tmp_path / "mine.yaml"))


def test_a_file_of_another_kind_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("base = 'digits'")
    with pytest.raises(RecipeError, match=r"mine\.toml: neither a file \.json, \.yaml, \.yml nor the folder of a run"):
        make_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        ("cifar10", {"image_size_px": 96}, (96, 0, 96)),
        ("imagenette-5", {"image_size_px": 96}, (96, 0, 110)),  # 146 of 128 px
        ("resnet50-v2", {"image_size_px": 88}, (88, 112, 116)),
        ("resnet50-v2", {"evaluate_size_px": 112}, (176, 112, 116)),
        ("imagenette-5", {"image_size_px": 96, "evaluate_resize_px": 96}, (96, 0, 96)),
        ("imagenette-5", {"epochs": 3}, (128, 0, 146)),
    ],
)
def test_sizes_of_evaluation_follow_the_image_size(
    name: str, changes: dict[str, int], sizes: tuple[int, int, int]
) -> None:
    recipe = with_changes(recipes[name], **changes)
    assert (recipe.image_size_px, recipe.evaluate_size_px, recipe.evaluate_resize_px) == sizes


def test_a_change_that_is_given_wins_over_what_follows_from_another() -> None:
    recipe = with_changes(recipes["cifar10"], epochs=3, fit_seconds=60.0, warmup_epochs=2.0)
    assert (recipe.epochs, recipe.fit_seconds, recipe.warmup_epochs) == (3, 60.0, 2.0)


def test_what_is_shown_says_what_each_field_is() -> None:
    text = recipe_yaml(recipes["resnet50-16"])
    assert yaml.safe_load(text)["size_ramp"]["from_px"] == 160
    assert all("  # " in line for line in text.splitlines())


@pytest.mark.slow  # timm loads torch
def test_the_names_of_timm_are_those_that_it_lists() -> None:
    timm = pytest.importorskip("timm")
    assert timm_names() == set(timm.list_models())
