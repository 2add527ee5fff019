"""Exported models predict what the network predicts, and one that differs is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.core.errors import ExactnessError
from pipeline.dataset import manifest
from pipeline.evaluation import export
from pipeline.models.factory import make_model
from pipeline.models.load import find_model
from tests.support.jobs import call_job


def batches(sizes: tuple[int, ...] = (1, 5)) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), generator.integers(0, 10, n)) for n in sizes]


def test_both_forms_equal_the_network_for_any_number_of_images(trained: str, tmp_path: Path) -> None:
    model = find_model(trained)
    forms = export.write_exports(model, 32, "flip", tmp_path)
    lines = export.compare_exports(model, "flip", forms, iter(batches()))
    assert [line.form for line in lines] == ["onnx", "torch.export"]
    for line in lines:
        assert (line.images, line.same_class) == (6, 6)
        assert line.correct == line.correct_exported
    onnx.checker.check_model(tmp_path / "model.onnx")
    values = json.loads((tmp_path / "model.json").read_text())
    assert values["classes"] == list(model.classes)
    assert values["weights_sha256"] == model.sha256
    with pytest.raises(ExactnessError, match="onnx: differs from the network on 6 images"):
        export.compare_exports(model, "none", forms, iter(batches()))  # it was exported with mirror images


def test_a_form_that_is_a_little_off_is_refused(trained: str) -> None:
    model = find_model(trained)
    net = export.ExportedNet(model, "none").eval().requires_grad_(False)

    def off(images: np.ndarray) -> np.ndarray:
        import torch

        return net(torch.from_numpy(images)).numpy() + np.eye(10, dtype=np.float32)[3] * 0.002

    with pytest.raises(ExactnessError, match=r"logits by up to 0.002; don't use it"):
        export.compare_exports(model, "none", {"off": off}, iter(batches()))


def test_the_job_compares_on_every_validation_image(trained: str, digits_dataset: str, tmp_path: Path) -> None:
    finished = call_job(
        "export", "--checkpoint", trained, "--data", digits_dataset, "--out", str(tmp_path / "out"), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    rows = manifest.load(digits_dataset).split("val").rows
    assert finished.stdout.count(f"the same class for {rows} of {rows} val images") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.pt2", "model.json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["airbench94", "vgg11_bn", pytest.param("resnet50", marks=pytest.mark.long)])
def test_every_kind_of_network_can_be_exported(name: str, trained: str, tmp_path: Path) -> None:
    from dataclasses import replace

    model = find_model(trained)
    recipe = replace(model.recipe, model=name, blur_pool=name == "resnet50")
    other = replace(model, recipe=recipe)
    net = make_model(name, 10, 32).eval()
    assert net is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_net", lambda model: make_seeded(recipe))
        forms = export.write_exports(other, 32, "none", tmp_path)
        assert all(line.same_class == 6 for line in export.compare_exports(other, "none", forms, iter(batches())))


def make_seeded(recipe: object) -> object:
    import torch

    from pipeline.models.factory import recipe_model

    torch.manual_seed(0)
    return recipe_model(recipe, 10).eval()
