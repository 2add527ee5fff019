"""The door of the package: every name is there, documented, and cheap to reach."""

import subprocess
import sys

import pytest

import pipeline


def loaded_after(code: str) -> set[str]:
    """Returns those packages that take a second to import that a new process has loaded after `code`."""
    check = "import sys; print(*({'torch', 'ray', 'torchvision', 'sklearn', 'scipy.stats'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    assert not loaded_after("import pipeline")


def test_data_and_recipes_need_neither_torch_nor_ray() -> None:
    assert not loaded_after("from pipeline import Recipe, ingest, open_dataset, recipes; recipes['cifar10']")


def test_images_of_the_right_size_and_the_scores_of_a_validation_load_nothing_that_takes_a_second() -> None:
    """Every process of every run does this much."""
    assert not loaded_after("""
import numpy as np
from pipeline.core.shares import wilson_interval
from pipeline.evaluation.metrics import basic_metrics
from pipeline.evaluation.predictions import Predictions
from pipeline.loader.decode import CropGeometry, resize_and_crop

pixels = np.zeros((32, 32, 3), np.uint8)
resize_and_crop(pixels, CropGeometry.centre_crops(32, 32, np.array([[32, 32]])), 0)
rows, best = np.arange(2), np.array([[0], [0]])
found = basic_metrics(Predictions(rows, rows, best, best.astype(np.float32), rows + 0.5, best[:, :0]), ("a", "b"))
assert (found["top1"], found["per_class"]["a"]["recall"]) == (0.5, 1.0)
wilson_interval(1, 2)
""")


@pytest.mark.parametrize("name", [name for name in pipeline.__all__ if name != "recipes"])
def test_a_name_of_the_door_is_documented(name: str) -> None:
    assert getattr(pipeline, name).__doc__
