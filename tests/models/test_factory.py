"""Networks by name: logits for every recipe, published sizes, whitening, and the blur before strides."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.choices import MODELS
from pipeline.config.presets import make_recipe, recipes
from pipeline.core.errors import RecipeError
from pipeline.models import factory
from pipeline.models.factory import check_image_size, make_model, recipe_model
from pipeline.models.layers import add_blur_pool, may_draw, num_parameters
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


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("vgg11_bn", {"image_size_px": 24}, r"=24: vgg11_bn doesn't take images of 24 px .*; use image_size_px=32"),
        ("seed-cnn", {"image_size_px": 12}, "use image_size_px=32"),
        ("seed-cnn", {"image_size_px": 32, "evaluate_size_px": 96}, "evaluate_size_px=96: .*use evaluate_size_px=32"),
        ("timm:vit_tiny_patch16_224", {"image_size_px": 64}, r"doesn't match model \(224\)\); use image_size_px=224"),
        ("timm:vit_tiny_patch16_224", {"image_size_px": 224, "evaluate_size_px": 256}, "use evaluate_size_px=224"),
        ("timm:swin_tiny_patch4_window7_224", {"image_size_px": 64}, "use image_size_px=224"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_take_the_size_is_one_line_with_a_size_that_works(
    model: str, changes: dict[str, int], words: str
) -> None:
    before = torch.random.get_rng_state()
    recipe = replace(make_recipe("cifar10"), model=model, evaluate_resize_px=0, **changes)
    with pytest.raises(RecipeError, match=words) as caught:
        check_image_size(recipe)
    assert "\n" not in str(caught.value)
    assert torch.equal(before, torch.random.get_rng_state())
    sizes = {**changes, **{str(name): int(size) for name, size in re.findall(r"use (\w+)=(\d+)", str(caught.value))}}
    check_image_size(replace(recipe, **sizes))  # as the message says


@pytest.mark.parametrize("name", recipes)
def test_every_recipe_fits_its_network(name: str) -> None:
    check_image_size(make_recipe(name))


def test_a_network_that_only_computes_for_real_is_tried_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(torch.nn.Module):
        """A network that looks at values, which tensors on "meta" don't have."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[-1] != 32:
                raise AssertionError("32 pixels only")
            return images.mean((2, 3)) * float(images.sum())

    monkeypatch.setattr(factory, "make_model", lambda *_: Reads())
    factory._built.cache_clear()
    check_image_size(replace(make_recipe("cifar10"), image_size_px=32))
    with pytest.raises(RecipeError, match=r"image_size_px=40: .*32 pixels only.*; use another size or another model"):
        check_image_size(replace(make_recipe("cifar10"), image_size_px=40, evaluate_resize_px=0))
    factory._built.cache_clear()


class Hidden(nn.Module):
    """A network that draws where no layer tells."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


NETWORKS = ("resnet18", "vgg11", "alexnet", "densenet121", "seed-cnn", "fast-resnet", "airbench-small", "airbench96")


@pytest.mark.parametrize("name", [*NETWORKS, "hidden"])
def test_a_network_that_draws_random_numbers_is_known_and_those_of_fast_runs_draw_none(name: str) -> None:
    size = 64 if name in ("vgg11", "alexnet") else 32
    net = Hidden() if name == "hidden" else make_model(name, 5, size)
    net.train()
    before = torch.get_rng_state()
    net(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    draws = not torch.equal(before, torch.get_rng_state())
    assert may_draw(net) >= draws
    assert may_draw(net) == (name in ("alexnet", "densenet121", "hidden"))


def test_a_proxy_that_does_not_take_the_images_is_refused() -> None:
    recipe = make_recipe("cifar10-96", model="resnet18", image_size_px=16)
    with pytest.raises(RecipeError, match=r"^image_size_px=16: airbench-proxy doesn't take .*; use image_size_px=32"):
        check_image_size(recipe)
    check_image_size(make_recipe("cifar10-96", model="resnet18", image_size_px=16, proxy_filter="none"))
