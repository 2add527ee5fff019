"""Flags that can't be parsed: one line, with the value and what is expected or the nearest flag; and --set."""

import importlib
from pathlib import Path

import pytest

from jobs import cli
from jobs.arguments.recipe import merged
from jobs.terminal import command
from pipeline.config.presets import make_recipe, recipes
from pipeline.core.errors import RecipeError

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, line: str) -> tuple[int, str, str]:
    """Returns (exit status, standard output, standard error) of `image-pipeline LINE`."""
    try:
        status = cli.main(line.split())
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # a flag that there isn't
        ("train --lr 3", "--lr: no such flag; did you mean --learning-rate?"),
        ("train -lr 3", "-lr: no such flag; did you mean --learning-rate?"),
        ("train --image-size 96", "--image-size: no such flag; did you mean --set image_size_px=96?"),
        ("train --batch-size=4", "--batch-size: no such flag; did you mean --global-batch-size?"),
        ("train --epoch 3", "--epoch: no such flag; did you mean --epochs?"),
        ("train --gpus 2", "--gpus: no such flag; did you mean --workers 2 or --device gpu?"),
        ("train --mixup 0.2", "--mixup: no such flag; did you mean --set augment.mixup_alpha=0.2?"),
        ("train --label_smoothing=0.1", "--label_smoothing: no such flag; did you mean --set label_smoothing=0.1?"),
        ("train --hue --seed 1", "--hue: no such flag; did you mean --set augment.hue=VALUE?"),
        ("train --output x", "--output: no such flag; did you mean --run-dir?"),
        ("train –data x", "–data: no such flag; did you mean --data?"),
        ("train --qqq", "--qqq: no such flag; --help lists all flags"),
        ("ingest --source x --output y", "--output: no such flag; did you mean --out?"),
        ("verify --dta x", "--dta: no such flag; did you mean --data?"),
        ("evaluate --momentum 3", "--momentum: no such flag; --help lists all flags"),  # no --set there
        # a value of the wrong kind
        ("train --epochs two", "--epochs two: must be a whole number"),
        ("train --epochs 1.5", "--epochs 1.5: must be a whole number"),
        ("train --learning-rate=x", "--learning-rate x: must be a number"),
        ("train --device gpuu", "--device gpuu: did you mean gpu? there are auto, gpu, cpu"),
        ("evaluate --compare a", "--compare a: give 2 values, each a text"),
        ("registry lst", "ACTION lst: did you mean list? there are list, show, add, promote, rollback, review, verify"),
        # a value that is missing, or too many
        ("train --epochs", "--epochs: its value is missing; give --epochs N"),
        ("verify", "--data is missing; give --data URI"),
        ("predict", "--input and --out are missing; give --input URI"),
        ("train photos/", "photos/: belongs to no flag; did you mean --data photos/?"),
        ("train --trace-rows true", "--trace-rows true: --trace-rows takes no value; leave true out"),
        ("train --epochs 3 momentum=0.8", "momentum=0.8: belongs to no flag; did you mean --set momentum=0.8?"),
        # --set
        ("train --set", "--set: its value is missing; give --set FIELD=VALUE, such as image_size_px=96"),
        ("train --set epochs", "--set epochs: give FIELD=VALUE, such as image_size_px=96"),
        ("train --set hue=0.1", "hue: a recipe has no such field; did you mean augment.hue?"),
        ("train --set imagesize=3", "imagesize: a recipe has no such field; did you mean image_size_px"),
        ("train --set augment.hue=red", "augment.hue=red: must be a finite number"),
        ("train --set compile=maybe", "compile=maybe: must be true or false"),
        (
            "train --set augment.auto=randm",
            "must be one of none, rand, trivial, rand-increasing, augmix; did you mean rand?",
        ),
        ("train --set augment.resized_crop_area=1", "must be 2 numbers with a comma between, such as 0.3,1, or none"),
        ("train --set size_ramp.from_px=32", "size_ramp: the recipe has none yet; set size_ramp.first_epoch"),
        ("train --epochs 3 --set epochs=4", "--epochs 3 and --set epochs=4 contradict each other; leave one out"),
        ("train --set epochs=5 --set epochs=4", "--set epochs=5 and --set epochs=4 contradict each other"),
        ("tune --trials 2 --recipe cifar10 --set momentm=0.8", "did you mean momentum"),
        ("retrain --set momentm=0.8", "did you mean momentum"),
        ("train --learning-rate nan", "learning_rate=nan must be finite"),
        # names of networks and recipes
        ("train --model efficientnet_b0", "did you mean timm:efficientnet_b0?"),
        ("train --set model=resnet", "model='resnet' is unknown; did you mean resnet"),
        ("train --model timm:efficientnet_b00", "is unknown to timm; did you mean timm:efficientnet_b0"),
        ("train --show-recipe cifr10", "recipe='cifr10' is unknown; did you mean cifar10"),
        ("train --set EPOCHS=3", "EPOCHS: a recipe has no such field; did you mean epochs"),
        ("train --recipe no.yaml", "no.yaml: no such file"),
    ],
)
def test_a_command_line_that_cannot_be_carried_out_is_answered_in_one_line(
    line: str, message: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = said(capsys, line)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "values"),
    [
        ("image_size_px=96 augment.mixup_alpha=0.2", {"image_size_px": 96, "augment.mixup_alpha": 0.2}),
        ("size_ramp=none compile=yes blur_pool=False", {"size_ramp": None, "compile": True, "blur_pool": False}),
        ("augment.resized_crop_area=0.3,1", {"augment.resized_crop_area": (0.3, 1.0)}),
        ("augment.resized_crop_ratio=[3/4,4/3]", {"augment.resized_crop_ratio": (0.75, 4 / 3)}),
        ("learning_rate=1e-3 optimizer=adamw", {"learning_rate": 0.001, "optimizer": "adamw"}),
        ("shuffle_window_row_groups=null model=timm:vit_base_patch16_224", {
            "shuffle_window_row_groups": None, "model": "timm:vit_base_patch16_224",
        }),
    ],
)  # fmt: skip
def test_a_value_of_set_has_the_type_of_its_field(lines: str, values: dict[str, object]) -> None:
    found = merged({}, (tuple(lines.split()),))
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {name: type(v) for name, v in values.items()}


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert merged({"epochs": 3}, (("epochs=3",), ("momentum=0.8",))) == {"epochs": 3, "momentum": 0.8}
    with pytest.raises(RecipeError, match="contradict"):
        merged({"epochs": 3}, (("epochs=4",),))


@pytest.mark.parametrize("job", ["cifar10", "imagenet_resnet", "retrain", "tune"])
def test_every_training_job_lists_and_shows_recipes_without_data(
    job: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"jobs.{job}")
    for line, first in (
        ("--list-recipes", "name "),
        ("--show-recipe imagenette-5 --set epochs=2", "name: imagenette-5"),
    ):
        with pytest.raises(SystemExit) as end:
            command.parse(module.Args, "", "PROGRAM", line.split())
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(first)
    path = tmp_path / "mine.yaml"
    path.write_text(out)
    assert make_recipe(str(path)) == make_recipe("imagenette-5", epochs=2)


def test_the_list_of_recipes_has_a_line_for_each(capsys: Capture) -> None:
    out = said(capsys, "train --list-recipes")[1]
    for name, recipe in recipes.items():
        (line,) = [each for each in out.splitlines() if each.startswith(f"{name} ")]
        assert recipe.model in line
        assert f" {recipe.epochs} " in line
        assert len(line.split()) > 6
