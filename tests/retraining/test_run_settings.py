"""What a retraining run without a recipe trains with: the champion's settings, those of an earlier run, or a choice."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import load
from pipeline.ingestion.sources import located
from pipeline.models.checkpoint import OUTPUT_NAME
from pipeline.retraining import registry
from pipeline.retraining.alias_file import encode
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.plan import RetrainOptions, plan_retraining
from pipeline.retraining.run_settings import RunSettings, absolute_weights, chosen_settings, kept_settings
from pipeline.storage import files
from pipeline.training.workflow import TrainOptions
from tests.support.pictures.images import make_tree
from tests.support.trained.retraining import planned_run, stored_decision

DIGITS, PHOTOS = make_recipe("digits"), make_recipe("imagenette-5")
NIGHT = "0123456789ab"


def as_json(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(recipe_to_json(recipe)))
    return values


def add_champion(work: str, recipe: Recipe, reason: str = f"trained in night {NIGHT}") -> str:
    """Writes a version that was trained with a recipe, moves both aliases to it, and returns its ID."""
    place, version = f"{work}/registry", registry.Version(recipe.name, "d" * 64, 0.9, 100, "c" * 64, "", {})
    version = replace(version, id=version.computed_id())
    folder = registry.version_uri(place, version.id)
    files.write_json(
        f"{folder}/{OUTPUT_NAME}", {"recipe": as_json(recipe), "classes": [], "dataset_digest": "d", "hold_out": 0.0}
    )
    files.write_bytes(f"{folder}/{registry.VERSION_NAME}", encode(asdict(version)))
    for alias in (registry.CHALLENGER, registry.CHAMPION):
        registry.move(place, alias, version.id, reason, registry.current(place, alias))
    return version.id


def add_decision(work: str, recipe: Recipe, fingerprint: str = "f", latest: bool = False, **more: object) -> None:
    """Writes the decision of the run NIGHT; latest: as the newest run's only."""
    values = stored_decision(night=NIGHT, recipe=as_json(recipe), fingerprint=fingerprint, seconds={}, **more)
    files.write_json(f"{work}/latest.json" if latest else f"{work}/nights/{NIGHT}/decision.json", values)


def kept(work: Path, fingerprint: str = "f", pretrained: str | None = None, **changes: object) -> RunSettings | None:
    return kept_settings(str(work), fingerprint, pretrained, changes)


def test_a_workspace_without_a_champion_or_a_run_has_nothing_to_keep(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    add_decision(str(tmp_path), DIGITS, fingerprint="another state of the source", latest=True)
    assert kept(tmp_path) is None


def test_the_champions_recipe_and_weights_are_kept_whatever_was_tried_since(tmp_path: Path) -> None:
    add_champion(str(tmp_path), replace(DIGITS, pixel_mean=(0.1, 0.1, 0.1)))
    add_decision(str(tmp_path), DIGITS, pretrained="timm")
    add_decision(str(tmp_path), PHOTOS, latest=True, pretrained="resnet50")
    files.write_json(f"{tmp_path}/active.json", asdict(planned_run("", recipe=as_json(PHOTOS), fingerprint="f")))
    assert kept(tmp_path) == RunSettings(DIGITS, "timm", "the champion's")
    assert kept(tmp_path, "g") == kept(tmp_path)


def test_flags_change_what_is_kept(tmp_path: Path) -> None:
    add_champion(str(tmp_path), DIGITS)
    add_decision(str(tmp_path), DIGITS, pretrained="timm")
    found = kept(tmp_path, pretrained="none", epochs=9)
    assert found is not None
    assert (found.recipe.epochs, found.recipe.model, found.pretrained) == (9, DIGITS.model, "none")


def test_an_older_champion_keeps_the_weights_that_its_run_kept_and_their_normalisation(tmp_path: Path) -> None:
    """Decisions of older versions don't say the weights."""
    trained = replace(DIGITS, pixel_mean=(0.1, 0.1, 0.1))
    add_champion(str(tmp_path), trained)
    add_decision(str(tmp_path), DIGITS)
    assert kept(tmp_path) == RunSettings(DIGITS, None, "the champion's")
    weights = f"{tmp_path}/nights/{NIGHT}/run/pretrained.safetensors"
    files.write_bytes(weights, b"weights")
    assert kept(tmp_path) == RunSettings(trained, weights, "the champion's")


def test_a_champion_that_was_added_by_hand_keeps_its_recipe(tmp_path: Path) -> None:
    add_champion(str(tmp_path), PHOTOS, "by hand")
    assert kept(tmp_path) == RunSettings(PHOTOS, None, "the champion's")


def test_after_a_rollback_the_settings_are_those_of_the_model_that_is_live_again(tmp_path: Path) -> None:
    add_champion(str(tmp_path), DIGITS)
    add_decision(str(tmp_path), DIGITS, pretrained=None)
    add_champion(str(tmp_path), PHOTOS, "trained in night ba9876543210")
    assert kept(tmp_path).recipe == PHOTOS
    registry.rollback(f"{tmp_path}/registry")
    assert kept(tmp_path).recipe == DIGITS


def test_a_run_that_was_killed_after_its_promotion_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its model is live, with the normalisation of its weights, and its decision isn't written yet."""
    run = planned_run(str(tmp_path), recipe=as_json(DIGITS), pretrained="timm")
    files.write_json(f"{tmp_path}/active.json", asdict(run))
    add_champion(str(tmp_path), replace(DIGITS, pixel_mean=(0.1,) * 3), f"trained in night {run.id}")
    assert kept(tmp_path, run.fingerprint) == RunSettings(DIGITS, "timm", "the champion's")


@pytest.mark.parametrize("latest", [True, False])
def test_without_a_champion_the_same_images_are_trained_on_with_the_same_recipe(tmp_path: Path, latest: bool) -> None:
    if latest:
        add_decision(str(tmp_path), DIGITS, pretrained="timm", latest=True)
    else:
        run = planned_run("", recipe=as_json(DIGITS), fingerprint="f", pretrained="timm")
        files.write_json(f"{tmp_path}/active.json", asdict(run))
    found = kept(tmp_path)
    assert found is not None
    assert (found.recipe, found.pretrained) == (DIGITS, "timm")
    assert kept(tmp_path, "g") is None


def test_a_plan_says_what_is_known_of_its_recipe(tmp_path: Path) -> None:
    source, work = make_tree(tmp_path / "source"), str(tmp_path / "work")
    first = plan_retraining(source, work)
    assert first.settings is None
    assert first.has_work
    assert not (tmp_path / "work").exists()
    given = plan_retraining(source, work, "digits")
    assert given.settings == RunSettings(DIGITS, None)
    add_champion(work, PHOTOS)
    add_decision(work, PHOTOS, pretrained=None)
    later = plan_retraining(source, work, options=RetrainOptions(changes={"epochs": 3}))
    assert later.settings is not None
    assert (later.settings.recipe.name, later.run.recipe["epochs"]) == ("imagenette-5", 3)
    assert plan_retraining(source, work, options=RetrainOptions(new_recipe=True)).settings is None
    with pytest.raises(RecipeError, match="recipe and new-recipe both say what to train"):
        plan_retraining(source, work, "digits", RetrainOptions(new_recipe=True))


def test_the_source_that_a_champion_was_trained_on_is_unchanged_without_a_recipe(tmp_path: Path) -> None:
    source, work = make_tree(tmp_path / "source"), str(tmp_path / "work")
    add_champion(work, replace(DIGITS, pixel_mean=(0.1,) * 3))
    for latest in (False, True):
        add_decision(work, DIGITS, located.fingerprint(str(source)), latest, pretrained="timm")
    assert not plan_retraining(source, work).has_work
    assert plan_retraining(source, work, options=RetrainOptions(changes={"epochs": 3})).has_work


def test_a_choice_is_that_of_train(tree_dataset: str) -> None:
    from pipeline.training.automatic.settings import automatic_recipe

    data, options = load(tree_dataset), TrainOptions(pretrained="none", device="cpu")
    found = chosen_settings(tree_dataset, data, options, {"epochs": 2})
    expected, _ = automatic_recipe(tree_dataset, data, pretrained="none", device="cpu")
    assert found.recipe.model == expected.model
    assert found.recipe.epochs == 2
    assert (found.pretrained, found.origin) == ("none", "chosen for these images")


def test_a_file_of_weights_is_recorded_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    assert absolute_weights("w.safetensors") == str(tmp_path / "w.safetensors")
    assert [absolute_weights(name) for name in ("timm", "resnet50", "none", None)] == ["timm", "resnet50", "none", None]


def test_weights_are_part_of_a_runs_identity_and_runs_of_older_versions_keep_theirs() -> None:
    run = planned_run("w", gate=Gate(false_promotions_per_year=None))
    assert replace(run, pretrained="timm").id != run.id
    gate = {"level": 0.05, "minimum_gain": 0.0, "recall_drop": 0.02, "calibration_rise": 0.1, "latency_ratio": 1.5}
    known = ("source", "fingerprint", "recipe", "champion", "from_champion", "attempt")
    values = {**{name: asdict(run)[name] for name in known}, "workspace": "", "gate": gate}
    assert run.id == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("from_champion", "remedy"),
    [
        (True, "for the first run give --pretrained timm instead of --from-champion, or set fit_head=none"),
        (False, "add --pretrained timm, or set fit_head=none"),
    ],
)
def test_a_last_layer_without_weights_to_fit_it_to_is_refused_with_a_remedy_that_works(
    from_champion: bool, remedy: str, tmp_path: Path
) -> None:
    source, work = make_tree(tmp_path / "source"), tmp_path / "work"
    fitted, options = replace(DIGITS, fit_head="first"), RetrainOptions(from_champion=from_champion)
    with pytest.raises(RecipeError, match=remedy):
        plan_retraining(source, work, fitted, options)
    add_champion(str(work), DIGITS)
    if from_champion:
        assert plan_retraining(source, work, fitted, options).settings is not None
    timm = RetrainOptions(training=TrainOptions(pretrained="timm"))
    assert plan_retraining(source, work, fitted, timm).settings is not None
