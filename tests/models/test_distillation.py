"""Learning from a teacher: the loss against numpy, the gradient, and a whole run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.core.errors import CheckpointError
from pipeline.dataset import manifest
from pipeline.loader.normalise import Normalise
from pipeline.models import checkpoint
from pipeline.models.distillation import Teacher, distillation_losses
from pipeline.models.factory import recipe_model
from pipeline.models.tensor_file import serialize_tensors
from pipeline.training import launch
from pipeline.training.job import TrainJob, Weights, weights_of
from pipeline.training.outputs import result

pytestmark = pytest.mark.ray


def test_the_loss_is_hintons() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    for temperature in (1.0, 4.0):
        p, q = (np.exp(x.double().numpy() / temperature) for x in (teacher, student))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected = temperature**2 * (p * np.log(p / q)).sum(1)
        np.testing.assert_allclose(distillation_losses(student, teacher, temperature), expected, rtol=1e-5)
    assert distillation_losses(teacher, teacher, 2.0).abs().max() < 1e-6


@pytest.fixture(scope="module")
def taught(digits_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run on the digits, with pixels normalised otherwise than a student's."""
    run = str(tmp_path_factory.mktemp("teacher") / "run")
    recipe = replace(make_recipe("digits", epochs=3), pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.2, 0.2, 0.2))
    launch.run_training(TrainJob(digits_dataset, run, recipe))
    return run


def test_a_teacher_sees_the_images_as_it_was_trained_to(digits_dataset: str, taught: str) -> None:
    recipe, classes = make_recipe("digits"), manifest.load(digits_dataset).classes
    teacher = Teacher(taught, classes, recipe)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    theirs, students = Normalise((0.5,) * 3, (0.2,) * 3), Normalise(recipe.pixel_mean, recipe.pixel_std)
    with torch.inference_mode():
        torch.testing.assert_close(teacher(students(images)), teacher.net(theirs(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_student_learns_from_its_teacher_and_goes_on_only_with_the_same_one(
    digits_dataset: str, taught: str, tmp_path: Path
) -> None:
    """With all of the loss from the teacher, labels are never looked at."""
    recipe = replace(make_recipe("digits", epochs=4), distill_weight=1.0, loss="mse", label_smoothing=0.9)
    job = TrainJob(
        digits_dataset, str(tmp_path / "run"), recipe, seed=2, teacher=weights_of("teacher", taught, "model.json")
    )
    data = launch.check_job(job)
    launch.claim_run(job, data)
    launch.run_training(job)
    assert result.build_result(job, data)["val"]["top1"] > 0.95
    for other in (None, Weights(taught, "0" * 64)):
        with pytest.raises(CheckpointError, match="teacher was "):
            launch.claim_run(replace(job, teacher=other), data)


def test_what_can_be_no_teacher_is_said(digits_dataset: str, taught: str, tmp_path: Path) -> None:
    recipe, classes = make_recipe("digits"), manifest.load(digits_dataset).classes
    with pytest.raises(CheckpointError, match=r"teacher=/nothing: no finished run \(model.json\)"):
        Teacher("/nothing", classes, recipe)
    with pytest.raises(CheckpointError, match=r"teacher=/nothing: no such file \(model.safetensors\)"):
        weights_of("teacher", "/nothing", checkpoint.MODEL_NAME)
    with pytest.raises(CheckpointError, match=r"knows 10 classes, the data set has 2 \(different: 0, 1, 2, 3\)"):
        Teacher(taught, ("a", "b"), recipe)
    values = json.loads(Path(taught, "model.json").read_text())
    values["recipe"] |= {"model": "airbench94"}
    (tmp_path / "model.json").write_text(json.dumps(values))
    net = recipe_model(replace(recipe, model="airbench94"), 10)
    (tmp_path / "model.safetensors").write_bytes(serialize_tensors(net.state_dict()))
    Teacher(str(tmp_path), classes, recipe)
    with pytest.raises(CheckpointError, match="airbench94 takes no images of 64 px"):
        Teacher(str(tmp_path), classes, replace(recipe, image_size_px=64))
