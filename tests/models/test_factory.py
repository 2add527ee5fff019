"""Networks by name: logits for every recipe, published sizes, whitening, and the blur before strides."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.config.choices import MODELS
from pipeline.config.presets import recipes
from pipeline.core.errors import RecipeError
from pipeline.models.factory import make_model, recipe_model
from pipeline.models.layers import add_blur_pool, num_parameters
from pipeline.models.small_networks import Airbench, FastResNet, SeedCnn


@pytest.mark.parametrize("name", recipes)
def test_every_recipe_builds_a_network_that_gives_an_output_for_each_class(name: str) -> None:
    recipe = recipes[name]
    with torch.device("meta"):  # shapes only, at no cost
        model = recipe_model(recipe, 7).eval()
        outputs = model(torch.empty(2, 3, recipe.image_size_px, recipe.image_size_px))
    assert outputs.shape == (2, 7)


@pytest.mark.parametrize("name", ["fast-resnet", "airbench94", "seed-cnn", "alexnet", "resnet18", "vgg11_bn"])
def test_outputs_are_logits_and_not_probabilities(name: str) -> None:
    model = make_model(name, 7, 32).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 32, 32))
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2))


def test_the_tutorials_cnn_has_its_published_size() -> None:
    # Keras' summary of the tutorial's network: 122,570 parameters.
    assert num_parameters(SeedCnn(10)) == 122_570


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 11.17), ("resnet50", 23.52), ("densenet121", 6.96), ("vgg11_bn", 9.23)]
)
def test_the_32_pixel_versions_have_the_known_sizes(name: str, millions: float) -> None:
    """As in the widely used CIFAR-10 versions of these networks (ResNet-18: 11.17 million, ...)."""
    with torch.device("meta"):
        model = make_model(name, 10, 32)
    assert num_parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)


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


def test_dirac_kernels_begin_as_the_identity_and_scales_stay() -> None:
    net = Airbench(10)
    conv = net.groups[1].convs[1]
    x = torch.randn(2, 256, 5, 5)
    assert torch.allclose(conv(x), x)
    assert not any(
        p.requires_grad for name, p in net.named_parameters() if name.endswith("weight") and ".norms." in name
    )
    assert next(name for name, p in net.named_parameters() if p.requires_grad) == "whitening.bias"


def test_blur_pooling_keeps_shapes_and_blurs_what_is_strided() -> None:
    plain, blurred = make_model("resnet18", 10, 224), make_model("resnet18", 10, 224)
    add_blur_pool(blurred)
    assert sum(type(module).__name__ == "BlurPool" for module in blurred.modules()) == 6  # not the first: 3 channels
    assert blurred(torch.randn(1, 3, 64, 64)).shape == plain(torch.randn(1, 3, 64, 64)).shape
    flat = torch.ones(1, 64, 8, 8)  # inside, a blur of the even is even
    inner, outer = blurred.layer2[0].conv1, blurred.layer2[0].conv1.conv
    assert torch.allclose(inner(flat)[..., 1:-1, 1:-1], outer(flat)[..., 1:-1, 1:-1], atol=1e-5)


def test_any_model_of_timm_is_made_by_name() -> None:
    pytest.importorskip("timm")
    assert make_model("timm:resnet10t", 7, 224)(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(Exception, match="did you mean timm:resnet"):
        make_model("timm:resnet10q", 7, 224)
