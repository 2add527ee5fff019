import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.augment import Augment
from pipeline.config.documentation import field_docs, field_help
from pipeline.config.presets import make_recipe, recipes
from pipeline.config.recipe import Recipe, SizeRamp, check_batch
from pipeline.config.recipe_json import recipe_from_json, recipe_to_json
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.models.identity import check_identity

ROOT = Path(__file__).parents[2]


def test_a_recipe_is_called_what_it_is_listed_as() -> None:
    assert all(make_recipe(name).name == name for name in recipes)


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifar-10", "cifar10"), ("resnet-50", "resnet50"), ("seedcnn", "seed-cnn")]
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe='{name}' is unknown; did you mean [^?]*{nearest}"):
        make_recipe(name)


def test_flags_change_fields_and_given_epochs_end_the_fitting() -> None:
    recipe = make_recipe("cifar10", epochs=3, global_batch_size=None, optimizer="adam")
    assert (recipe.epochs, recipe.fit_seconds, recipe.optimizer) == (3, 0.0, "adam")
    assert recipe.global_batch_size == recipes["cifar10"].global_batch_size
    assert make_recipe("resnet50", epochs=1).warmup_epochs < 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs=0 must be 1 or more"),
        ("global_batch_size", -1, "global_batch_size=-1"),
        ("learning_rate", 0.0, "learning_rate=0.0 must be above 0"),
        ("label_smoothing", 1.0, "label_smoothing=1.0"),
        ("warmup_epochs", 99.0, "warmup_epochs=99.0"),
        ("optimizer", "admw", "did you mean adamw"),
        ("schedule", "cosin", "did you mean cosine"),
        ("model", "resnet81", "did you mean resnet18"),
        ("precision", "float8", "did you mean float32 or float16"),
    ],
)
def test_impossible_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(recipes["cifar10"], **{field: value})


@pytest.mark.parametrize(
    ("batch", "workers", "rows", "message"),
    [
        (2, 3, None, "global_batch_size=2 is too small for 3 workers; use 3 or more"),
        (4, 4, 5, "leaves steps of 2 rows for 4 workers"),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(
    batch: int, workers: int, rows: int | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_batch(make_recipe("cifar10", global_batch_size=batch), workers, rows)


def test_batches_that_can_be_shared_out_pass() -> None:
    check_batch(make_recipe("cifar10"), 2, 50_000)
    check_batch(make_recipe("cifar10", global_batch_size=4), 4, 4)
    check_batch(make_recipe("cifar10", global_batch_size=1000), 7, 50_000)  # 142 or 143 each


@pytest.mark.parametrize(
    ("ramp", "last_px", "sizes"),
    [
        (SizeRamp(160, 5, 13), 192, [160] * 9 + [192] * 7),  # as FFCV's 16 epochs, in steps of 32
        (SizeRamp(128, 0, 4), 224, [128, 160, 192, 192, 224, 224]),
        (SizeRamp(96, 0, 2, 1), 177, [96, 136, 177, 177]),
        (SizeRamp(64, 3, 3), 128, [64, 64, 64, 128]),
    ],
)
def test_images_grow_from_epoch_to_epoch(ramp: SizeRamp, last_px: int, sizes: list[int]) -> None:
    assert [ramp.size_px(epoch, last_px) for epoch in range(len(sizes))] == sizes


@pytest.mark.parametrize("values", [(4, 0, 1), (32, 3, 2), (32, -1, 2), (32, 0, 1, 0)])
def test_impossible_ramps_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="size_ramp=SizeRamp"):
        SizeRamp(*values)


def test_a_ramp_needs_a_stream() -> None:
    with pytest.raises(RecipeError, match="size_ramp needs residency='stream' and a from_px of at most image_size_px"):
        dataclasses.replace(recipes["cifar10"], size_ramp=SizeRamp(16, 0, 2))
    with pytest.raises(RecipeError, match="size_ramp needs"):
        dataclasses.replace(recipes["resnet50"], size_ramp=SizeRamp(256, 0, 2))


def test_mixing_needs_a_pair_for_each_worker() -> None:
    recipe = make_recipe("cifar10", global_batch_size=4)
    check_batch(recipe, 4, 4)
    with pytest.raises(RecipeError, match="global_batch_size=4 is too small for 4 workers; use 8"):
        check_batch(dataclasses.replace(recipe, augment=Augment(mixup_alpha=0.2)), 4, 4)


def test_every_field_of_a_recipe_is_read_somewhere() -> None:
    source = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py") if path.name != "recipe.py")
    for field in dataclasses.fields(Recipe):
        assert re.search(rf"recipe\.{field.name}\b", source) or field.name == "name", field.name


def test_nothing_loads_pickled_code() -> None:
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        source = path.read_text()
        assert "weights_only=False" not in source, path
        assert not re.search(r"pickle\.loads?\(", source), path
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*(?:\([^()]*\))?[^()]*\))*\)", source):
            assert "weights_only=True" in call, path


@pytest.mark.parametrize("cls", [Recipe, Augment, SizeRamp])
def test_every_field_is_documented_at_the_field(cls: type) -> None:
    docs = field_docs(cls)
    assert list(docs) == [field.name for field in dataclasses.fields(cls)]
    assert all(text.endswith(".") and len(text) > 20 for text in docs.values())


def test_the_help_of_a_flag_is_the_first_sentence_of_its_field() -> None:
    assert field_help(Recipe, "warmup_from") == "Share of the peak learning rate at which the warm-up starts, in [0, 1)"
    assert field_help(Recipe, "accumulate_steps").endswith("each on its part of a worker's images")
    with pytest.raises(KeyError):
        field_help(Recipe, "no_such_field")


def test_presets_are_a_mapping() -> None:
    assert recipes["cifar10"] == make_recipe("cifar10")
    assert "cifar10" in recipes
    assert "cifr10" not in recipes
    assert recipes.get("cifr10") is None
    assert len(list(recipes)) == len(recipes) > 20
    with pytest.raises(RecipeError, match=r"^recipe='cifr10' is unknown; did you mean cifar10") as caught:
        recipes["cifr10"]
    assert isinstance(caught.value, KeyError)


def test_an_unknown_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="field='batch_size' is unknown; did you mean global_batch_size"):
        make_recipe("cifar10", batch_size=3)


def as_json(**changes: Any) -> dict[str, Any]:
    """Returns the JSON of the recipe `resnet18-16`, with fields changed."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipes["resnet18-16"])))
    return values | changes


@pytest.mark.parametrize("name", recipes)
def test_a_recipe_survives_json(name: str) -> None:
    assert recipe_from_json(json.loads(json.dumps(dataclasses.asdict(recipes[name])))) == recipes[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": "3"}, "epochs='3': expected int, got str; correct the recipe's JSON"),
        ({"epochs": 0}, "epochs=0 must be 1 or more"),
        ({"optimizer": "admw"}, "optimizer='admw' is unknown; did you mean adamw"),
        ({"augment": {"hue": 3}}, "augment.hue=3.0 must lie in"),
        ({"augment": {"hue": "red"}}, "augment.hue='red': expected float, got str"),
        ({"augment": {"auto": "randm"}}, "augment.auto='randm' is unknown; did you mean rand"),
        ({"augment": {"hu": 0.1}}, "field of augment='hu' is unknown; did you mean hue"),
        ({"size_ramp": {"from_px": 16}}, "size_ramp={'from_px': 16}: object missing required field first_epoch"),
        ({"learning_rat": 1}, "field='learning_rat' is unknown; did you mean learning_rate"),
        ({"pixel_mean": [0.1, 0.2]}, r"pixel_mean=\[0.1, 0.2\]: expected array of length 3, got 2"),
        ({"pixel_mean": [0.1, 0.2, "0.3"]}, "pixel_mean="),
    ],
)
def test_json_that_is_no_recipe_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe_from_json(as_json(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "it has no fields"), ('{"recipe": {}}', "name")]
)
def test_a_file_without_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"(?i)^recipe={path}: .*{message}"):
        make_recipe(str(path))
    path.write_text(json.dumps({"recipe": as_json()}))
    assert make_recipe(str(path)) == recipes["resnet18-16"]


def test_fields_that_came_later_are_left_out_of_the_identity_at_their_default() -> None:
    values = recipe_to_json(recipes["resnet50-v2"])
    assert "rand_deviation" not in values["augment"]
    assert {"schedule_by", "trust_clip", "sum_classes", "zero_init_residual"}.isdisjoint(values)
    assert recipe_from_json(json.loads(json.dumps(values))) == recipes["resnet50-v2"]
    assert recipe_to_json(recipes["resnet50-a1"])["augment"]["rand_deviation"] == 0.5
    assert recipe_to_json(recipes["resnet50-a1"])["schedule_by"] == "epoch"


def test_a_recipe_that_is_read_from_json_is_written_as_the_same_bytes() -> None:
    """Integers stay integers in fields that are floats: a run's config.json is part of its identity."""
    for name, recipe in recipes.items():
        text = json.dumps(dataclasses.asdict(recipe))
        assert json.dumps(dataclasses.asdict(recipe_from_json(json.loads(text)))) == text, name


@pytest.mark.parametrize("size", [1024, 2048, 4096])
def test_larger_batches_of_resnet50_have_rates_in_proportion_and_start_from_the_same(size: int) -> None:
    small, large = recipes["resnet50"], recipes[f"resnet50-batch{size}"]
    assert large.learning_rate / large.global_batch_size == pytest.approx(small.learning_rate / 256)
    assert large.learning_rate * large.warmup_from == pytest.approx(small.learning_rate)  # Goyal et al., section 2.2
    kept = {"name": "x", "global_batch_size": 1, "learning_rate": 1.0, "warmup_from": 0.0}
    assert dataclasses.replace(large, **kept) == dataclasses.replace(small, **kept)


def test_the_identity_of_a_run_does_not_tell_compiled_from_not() -> None:
    """A run that was begun with compile: true goes on without it, and the other way round."""
    plain, compiled = (recipe_to_json(make_recipe("digits", compile=each)) for each in (False, True))
    assert plain["compile"] is False  # as the files of earlier runs have it
    assert recipe_from_json(compiled).compile
    check_identity("run", {"recipe": compiled}, {"recipe": plain})
    check_identity("run", {"recipe": plain}, {"recipe": compiled})
    with pytest.raises(CheckpointError, match=r"recipe\.epochs was 16, now 3"):
        check_identity("run", {"recipe": plain}, {"recipe": {**compiled, "epochs": 3}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"residency": "stream"},
            "residency=stream doesn't go together with proxy_filter; set residency=resident, or ",
        ),
        ({"repeats": 2}, "repeats=2 doesn't go together with proxy_filter; set repeats=1"),
        ({"fit_seconds": 60.0}, "fit_seconds=60.0 doesn't go together with proxy_filter; set fit_seconds=0"),
        ({"augment": Augment(mixup_alpha=0.2)}, "augment.mixup_alpha=0.2 doesn't go together with proxy_filter"),
    ],
)
def test_what_does_not_go_together_with_a_proxy_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        dataclasses.replace(recipes["cifar10-96"], **changes)


def test_a_filter_is_checked_and_keeps_its_share() -> None:
    for changes, message in (({"keep": 1.0}, "proxy_filter.keep=1.0 must lie in"), ({"model": "resnt18"}, "resnet18")):
        with pytest.raises(RecipeError, match=message):
            ProxyFilter(**{"model": "resnet18", **changes})
    with pytest.raises(RecipeError, match=r"proxy_filter\.update_every_steps=0 must be 1 or more"):
        ProxyFilter("resnet18", update_every_steps=0)
    kept = ProxyFilter("resnet18", keep=0.5)
    assert [kept.num_kept(size) for size in (1, 2, 1020, 1024)] == [1, 1, 510, 512]
    recipe = recipes["cifar10-96"]
    check_batch(recipe, 510, 50_000)
    with pytest.raises(RecipeError, match="leaves steps of 510 rows for 511 workers"):
        check_batch(recipe, 511, 50_000)


def test_fields_that_came_later_are_left_out_where_they_change_nothing() -> None:
    values = recipe_to_json(recipes["cifar10-94"])
    assert not {"proxy_filter", "schedule_end", "whitening_bias_rate", "sampling"} & values.keys()
    values = json.loads(json.dumps(recipe_to_json(recipes["cifar10-96"])))
    assert values["proxy_filter"] == {"model": "airbench-proxy", "keep": 0.5, "update_every_steps": 4}
    assert recipe_from_json(values) == recipes["cifar10-96"]


def test_a_part_of_a_recipe_is_switched_off_by_none_from_python_too() -> None:
    assert make_recipe("cifar10-96", proxy_filter="none").proxy_filter is None
    assert make_recipe("resnet50-16", size_ramp="none").size_ramp is None
    assert make_recipe("cifar10-96", augment="none").augment == Augment()
    with pytest.raises(RecipeError, match="proxy_filter=airbench-proxy: must be none, or set its fields one by one"):
        make_recipe("cifar10-96", proxy_filter="airbench-proxy")


def test_an_unknown_proxy_is_named_by_its_field() -> None:
    with pytest.raises(RecipeError, match=r"^proxy_filter\.model='nope' is unknown; "):
        make_recipe("cifar10-96", **{"proxy_filter.model": "nope"})
