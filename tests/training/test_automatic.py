"""The recipe that is chosen for data and a machine, its reasons, and the warnings of any recipe."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.presets import make_recipe, recipes
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import PipelineError
from pipeline.dataset.manifest import load
from pipeline.ingestion.sources import cifar
from pipeline.training.automatic import Choice, DataFacts, Machine, choose_recipe, data_facts, run_warnings
from pipeline.training.automatic.recipes import PHOTOS
from pipeline.training.automatic.weights import check_setting
from pipeline.training.workflow import default_workers

CPU, GPU = Machine(2), Machine(16, gpus=1)
COLOURS = (0.48, 0.45, 0.40)
LITE0 = "timm:tf_efficientnet_lite0"


def facts(rows: int = 200, side: int = 375, classes: int = 5, **changes: Any) -> DataFacts:
    """Returns the facts of a set of photographs."""
    names = tuple(f"class{number}" for number in range(classes))
    per_class = tuple([rows // classes] * classes)
    known = DataFacts("photos", names, rows, max(100, rows // 10), per_class, side * 4 // 3, side, COLOURS)
    return replace(known, **changes)


def choose(known: DataFacts, machine: Machine = CPU, weights: str | None = LITE0, **asked: Any) -> Choice:
    """Returns the choice where a network's weights are at hand, or none are."""

    def pick(model: str | None) -> tuple[str | None, str]:
        return (model or weights if weights else None), "at hand"

    return choose_recipe(known, machine, pick, asked, operations=lambda recipe, classes: 1e9)


@pytest.mark.parametrize(
    ("known", "machine", "weights", "expected"),
    [
        # few photographs start from weights, at the size that they have, up to 128 px on CPUs and 224 px on GPUs
        (facts(), CPU, LITE0, (LITE0, 128)),
        (facts(), GPU, "resnet50", ("resnet50", 224)),
        (facts(side=100), CPU, LITE0, (LITE0, 96)),
        (facts(side=180), GPU, LITE0, (LITE0, 160)),
        (facts(24, classes=2), CPU, LITE0, (LITE0, 128)),
        # without weights: what learns from scratch
        (facts(), CPU, None, ("fast-resnet", 64)),
        (facts(), GPU, None, ("resnet18", 224)),
        # as many as ImageNet's
        (facts(1_281_167, classes=1000), GPU, LITE0, ("resnet50", 192)),
        # small images at their own size
        (facts(1500, 28), CPU, LITE0, ("fast-resnet", 32)),
        (facts(50_000, 32, classes=100), CPU, LITE0, ("airbench-small", 32)),
        (facts(50_000, 32, classes=100), GPU, LITE0, ("airbench96", 32)),
        (facts(100_000, 64, classes=200), CPU, LITE0, ("fast-resnet", 64)),
        (facts(100_000, 64, classes=200), GPU, LITE0, ("resnet18", 64)),
        (facts(2000, 64), CPU, LITE0, (LITE0, 128)),
        # sets with a recipe of their own
        (facts(name="digits-not-cifar10"), CPU, LITE0, ("fast-resnet", 32)),
    ],
)
def test_network_and_size_suit_the_images_and_the_machine(
    known: DataFacts, machine: Machine, weights: str | None, expected: tuple[str, int]
) -> None:
    recipe = choose(known, machine, weights).recipe
    assert (recipe.model, recipe.image_size_px) == expected


def test_cifar10_and_the_digits_keep_their_recipes() -> None:
    known = replace(facts(50_000, 32, classes=10), classes=cifar.CLASSES, width_px=32)
    assert choose(known).recipe == recipes["cifar10"]
    assert choose(replace(known, name="digits-not-cifar10")).recipe == recipes["digits"]
    assert choose(replace(known, height_px=375, width_px=500)).recipe != recipes["cifar10"]


@pytest.mark.parametrize("rows", [2, 5, 24, 60, 200, 1_000, 9_000, 40_000, 150_000, 1_281_167])
@pytest.mark.parametrize("side", [8, 28, 64, 100, 375, 3000])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=str)
@pytest.mark.parametrize("weights", [LITE0, None])
def test_every_choice_can_be_trained_and_takes_a_hundred_steps(
    rows: int, side: int, machine: Machine, weights: str | None
) -> None:
    known = facts(rows, side, classes=2)
    choice = choose(known, machine, weights)
    recipe = choice.recipe
    check_batch(recipe, 1, rows)
    assert recipe.epochs * -(-rows // recipe.global_batch_size) >= min(100, recipe.epochs * rows)
    assert not [line for line in run_warnings(recipe, known) if "steps" in line or "shrinks" in line or "batch" in line]
    assert choice.reasons[0].startswith(f"recipe {recipe.name}: ")


def test_more_photographs_get_fewer_epochs_in_the_same_time() -> None:
    epochs = [choose(facts(rows)).recipe.epochs for rows in (50, 200, 1000, 5000, 20_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > 10
    assert choose(facts(20_000), Machine(64)).recipe.epochs > epochs[-1]


def test_what_is_asked_for_stays_and_the_rest_follows() -> None:
    choice = choose(facts(), model="resnet18", image_size_px=96, epochs=3, global_batch_size=50)
    recipe = choice.recipe
    assert (recipe.model, recipe.image_size_px, recipe.epochs, recipe.global_batch_size) == ("resnet18", 96, 3, 50)
    assert recipe.evaluate_resize_px == 110
    assert choice.pretrained == "timm"
    assert "3 epochs as asked (12 steps, learning rate 0.001 because they are few)" in choice.reasons[-1]


def test_a_fine_tuning_of_few_steps_has_a_higher_learning_rate() -> None:
    rates = [choose(facts(rows), epochs=epochs).recipe.learning_rate for rows, epochs in ((24, 3), (120, 3), (200, 20))]
    assert rates[0] == pytest.approx(1e-3)
    assert 5e-4 < rates[1] < rates[0]
    assert rates[2] == pytest.approx(3e-4)
    few = choose(facts(120), epochs=3)
    assert f"learning rate {few.recipe.learning_rate:.1g} because they are few" in few.reasons[-1]
    assert choose(facts(), weights=None, epochs=1).recipe.learning_rate == recipes["digits"].learning_rate


def test_few_images_of_a_class_bring_a_hint_and_the_last_layer_alone_has_no_epochs() -> None:
    hint = "few images: --set fit_head=only fits the last layer alone, in seconds, often as well"
    assert choose(facts(200)).reasons[-2] == hint
    assert hint not in choose(facts(9_000)).reasons
    assert hint not in choose(facts(200), weights=None).reasons
    assert hint not in choose(facts(200), fit_head="first").reasons
    only = choose(facts(200), fit_head="only")
    assert hint not in only.reasons
    assert only.reasons[-1] == "the last layer alone is fitted: each of 200 images is computed once"


def test_a_network_that_is_asked_for_gets_a_size_that_it_takes() -> None:
    pytest.importorskip("timm")
    vit = "timm:vit_small_patch16_224"
    for weights in (LITE0, None):
        recipe = choose(facts(), weights=weights, model=vit).recipe
        assert (recipe.model, recipe.image_size_px) == (vit, 224)
    assert choose(facts(), weights=None, model="resnet34").recipe.image_size_px == 128
    assert choose(facts(), weights=None, model="fast-resnet").recipe.image_size_px == 64


def test_weights_that_are_asked_for_are_taken_for_small_images_too() -> None:
    of_cifar = replace(facts(50_000, 32, classes=10), classes=cifar.CLASSES, width_px=32)
    for known in (of_cifar, facts(1500, 28), facts(100_000, 64)):
        choice = choose(known, pretrained=True)
        assert (choice.recipe.model, choice.recipe.image_size_px, choice.pretrained) == (LITE0, 128, "timm")


@pytest.mark.parametrize(
    ("setting", "recipe", "message"),
    [
        ("nothere.pt", None, r"nothere\.pt: no such file"),
        ("resnet5O", None, "did you mean resnet50"),
        ("timm", recipes["cifar10"], "nobody publishes weights of model=airbench-small"),
        ("resnet50", recipes["imagenette-5"], "the recipe's network is resnet18"),
        ("timm", recipes["imagenette-5"], None),
        ("timm", None, None),
        ("none", recipes["cifar10"], None),
    ],
)
def test_weights_that_cannot_be_right_are_found_before_any_data(
    setting: str, recipe: Recipe | None, message: str | None
) -> None:
    if message is None:
        check_setting(setting, recipe)
        return
    with pytest.raises(PipelineError, match=message):
        check_setting(setting, recipe)


def test_gpus_get_eight_images_of_a_batch_each() -> None:
    few, many = make_recipe("imagenette-5", global_batch_size=16), make_recipe("resnet50")
    assert [default_workers(few, gpus) for gpus in (0, 1, 2, 8)] == [0, 1, 2, 2]
    assert [default_workers(many, gpus) for gpus in (0, 1, 8)] == [0, 1, 8]


def test_grey_images_are_not_mirrored() -> None:
    for known in (facts(1500, 28), facts(), facts(50_000, 32)):
        assert choose(known).recipe.augment.flip_probability == 0.5
        assert choose(replace(known, pixel_mean=(0.3,) * 3)).recipe.augment.flip_probability == 0.0


GOOD = make_recipe("imagenette-5", epochs=40)


@pytest.mark.parametrize(
    ("recipe", "known", "expected"),
    [
        (GOOD, facts(1000), []),
        (
            recipes["cifar10"],
            facts(50_000),
            ["500x375 px in the median, to 32 px, where little of a photograph is left; leave"],
        ),
        (
            replace(GOOD, name=PHOTOS, image_size_px=32),
            facts(1000),
            ["little of a photograph is left; take more, such as --set image_size_px=128"],
        ),
        (recipes["cifar10"], facts(50_000, 64), []),
        (make_recipe("imagenette-5", epochs=2), facts(1000), ["32 steps are few to learn from; use --epochs 7"]),
        (
            make_recipe("imagenette-5", epochs=50),
            facts(50),
            ["global_batch_size=64 is more than the 50", "50 steps are few to learn from; use --global-batch-size 8"],
        ),
        (
            GOOD,
            facts(1000, rows_per_class=(991, 3, 2, 2, 2)),
            ["4 of 5 classes have fewer than 10", "class class0 has"],
        ),
        (GOOD, facts(1000, val_rows=25), ["25 validation images alone: it is uncertain by up to 20 points"]),
    ],
)
def test_what_cannot_be_good_is_said_with_its_remedy(recipe: Recipe, known: DataFacts, expected: list[str]) -> None:
    lines = run_warnings(recipe, known)
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line


def test_facts_are_those_of_the_data_set(tree_dataset: str) -> None:
    known = data_facts(tree_dataset, load(tree_dataset))
    assert (known.train_rows, known.val_rows, known.rows_per_class) == (51, 51, (17, 17, 17))
    assert 8 <= known.side_px <= 1000
    assert not known.is_cifar10
