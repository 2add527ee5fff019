import pytest
import torch
from torch.nn import functional as F

from pipeline.config.choices import MODELS
from pipeline.config.presets import recipes
from pipeline.core.errors import RecipeError
from pipeline.models.factory import make_model, recipe_model
from pipeline.models.layers import num_parameters
from pipeline.models.small_networks import FastResNet, SeedCnn


@pytest.mark.parametrize("recipe", recipes)
def test_every_recipe_builds_a_network_that_gives_a_logit_for_each_class(recipe: str) -> None:
    made = recipes[recipe]
    model = recipe_model(made, 7).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, made.image_size_px, made.image_size_px))
    assert logits.shape == (2, 7)
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2))  # logits, not probabilities


def test_the_tutorials_cnn_has_its_published_size() -> None:
    # Keras' summary of the tutorial's network: 122,570 parameters.
    assert num_parameters(SeedCnn(10)) == 122_570


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 11.17), ("resnet50", 23.52), ("densenet121", 6.96), ("vgg11_bn", 9.23)]
)
def test_the_32_pixel_versions_have_the_known_sizes(name: str, millions: float) -> None:
    """As in the widely used CIFAR-10 versions of these networks (ResNet-18: 11.17 million, ...)."""
    assert num_parameters(make_model(name, 10, 32)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_32_pixel_stem_keeps_the_resolution() -> None:
    model = make_model("resnet18", 10, 32)
    stem = model.maxpool(model.relu(model.bn1(model.conv1(torch.randn(1, 3, 32, 32)))))
    assert stem.shape[-1] == 32


def test_whitening_whitens() -> None:
    torch.manual_seed(0)
    images = F.interpolate(torch.randn(200, 3, 8, 8), 32, mode="bilinear")  # neighbours are alike, as in photographs
    model = FastResNet(10)
    model.fit_whitening(images)
    with torch.inference_mode():
        out = model.whitening(images)[:, :12].permute(0, 2, 3, 1).reshape(-1, 12)
    covariance = out.T @ out / len(out)
    assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)
    assert (covariance.diag()[:6] > 0.95).all()  # the smallest are damped by the 5e-4
    assert torch.equal(model.whitening.weight[:12], -model.whitening.weight[12:])
    assert not model.whitening.weight.requires_grad


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="fast-resnet"):
        make_model("restnet", 10, 32)


@pytest.mark.parametrize("name", MODELS)
def test_every_listed_model_is_made(name: str) -> None:
    with torch.device("meta"):
        assert num_parameters(make_model(name, 10, 224)) > 100_000
