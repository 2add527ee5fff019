"""Networks by name: this package's own, torchvision's, and timm's where timm is installed.

Every network takes float images [N, 3, S, S] and returns logits [N, C]; the loss applies the softmax. torchvision's
networks are built for 224 pixels; for images of up to 64 pixels their first layers, or their last, are replaced.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pipeline.config.choices import MODELS, check_choice
from pipeline.config.recipe import Recipe
from pipeline.core.errors import PipelineError, RecipeError
from pipeline.models.layers import add_blur_pool, add_stochastic_depth, zero_residual_norms
from pipeline.models.small_networks import Airbench, FastResNet, SeedCnn

_SMALL_IMAGE_PX = 64  # and below: a first layer of stride 4, as for 224 pixels, would leave too few pixels


def _of_torchvision(name: str, num_classes: int) -> Any:
    import torchvision  # here: it takes over a second

    return torchvision.models.get_model(name, num_classes=num_classes)


def _resnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = _of_torchvision(name, num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:  # as He et al., 1512.03385, section 4.2: 3x3, stride 1, no pooling
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _densenet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = _of_torchvision(name, num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:
        features = model.features
        features.conv0 = nn.Conv2d(3, features.conv0.out_channels, 3, padding=1, bias=False)
        features.pool0 = nn.Identity()
    return model


def _vgg(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = _of_torchvision(name, num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:  # five poolings leave 1 pixel of 32, not 7x7; one linear layer is enough
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
    return model


def _alexnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = _of_torchvision(name, num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:  # 3x3 with stride 1, because 11x11 with stride 4 would leave 7 pixels of 32
        model.features[0] = nn.Conv2d(3, 64, 3, padding=1)
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(256 * 4, 512), nn.ReLU(), nn.Linear(512, num_classes)
        )
    return model


_MAKERS: dict[str, Callable[[str, int, int], nn.Module]] = {
    "fast-resnet": lambda _, num_classes, __: FastResNet(num_classes),
    "airbench-small": lambda _, num_classes, __: Airbench(num_classes, (32, 160, 256)),
    "airbench94": lambda _, num_classes, __: Airbench(num_classes),
    "airbench95": lambda _, num_classes, __: Airbench(num_classes, (128, 384, 384), scale=1 / 9),
    "airbench96": lambda _, num_classes, __: Airbench(num_classes, (128, 512, 512), 3, norm_momentum=0.1, scale=1 / 9),
    "airbench96-slim": lambda _, num_classes, __: Airbench(num_classes, (128, 384, 512), 3, 0.1, scale=1 / 9),
    "airbench-proxy": lambda _, num_classes, __: Airbench(num_classes, (32, 64, 64), 2, 0.1, 1 / 9, False),
    "seed-cnn": lambda _, num_classes, image_size_px: SeedCnn(num_classes, image_size_px),
    "alexnet": _alexnet,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _resnet),
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), _densenet),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg16"), _vgg),
}


def make_model(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    """Returns an untrained network for images of `image_size_px`, with a logit for each class.

    name: one of MODELS (`pipeline/config/choices.py`), or "timm:NAME" for one of timm's. Its weights are drawn from
    torch's global generator: call `torch.manual_seed` before. Raises RecipeError for an unknown name.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), num_classes)
    check_choice("model", name, MODELS)
    return _MAKERS[name](name, num_classes, image_size_px)


def recipe_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """Returns the untrained network of a recipe, as `blur_pool`, `stochastic_depth` and `zero_init_residual` say.

    Raises RecipeError for a network that has no such blocks.
    """
    depth = recipe.stochastic_depth
    if depth and recipe.model.startswith("timm:"):
        model = _timm(recipe.model.removeprefix("timm:"), num_classes, depth)
    else:
        model = make_model(recipe.model, num_classes, recipe.image_size_px)
        if depth and not add_stochastic_depth(model, depth):
            raise RecipeError(
                f"stochastic_depth={depth}: {recipe.model} has no residual blocks that can be left out; set it to 0"
            )
    if recipe.zero_init_residual and not zero_residual_norms(model):
        raise RecipeError(f"zero_init_residual: {recipe.model} is no ResNet of torchvision; set it to false")
    if recipe.blur_pool:
        add_blur_pool(model)
    return model


def _timm(name: str, num_classes: int, stochastic_depth: float = 0.0) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise RecipeError(
            f"model='timm:{name}' needs the package timm on every node; install it or choose another model"
        )
    import timm

    check_choice("model", f"timm:{name}", tuple(f"timm:{known}" for known in timm.list_models()))
    depth: dict[str, Any] = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, **depth)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise RecipeError(f"stochastic_depth={stochastic_depth}: timm:{name} has none; set it to 0") from error
    return model


# --- does the network take the image size? -------------------------------------------------------------------------

_COMMON_SIZES_PX = (32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512)


def check_image_size(recipe: Recipe) -> None:
    """Raises RecipeError, with the nearest size that works, unless the recipe's network takes all of its image sizes.

    So does its proxy, where it has one, for that of training. The network is built and called on torch's device "meta",
    which computes shapes alone: in a second at most, without its memory. Takes the import of torch, so call it where
    the recipe isn't known to work.
    """
    sizes = [("image_size_px", recipe.image_size_px, True)]
    if recipe.size_ramp:
        sizes.append(("size_ramp.from_px", recipe.size_ramp.from_px, True))
    if recipe.evaluate_size_px:
        sizes.append(("evaluate_size_px", recipe.evaluate_size_px, False))
    for name, size_px, training in sizes:
        built_for = size_px if name == "image_size_px" else recipe.image_size_px
        arguments = (recipe.model, recipe.blur_pool, built_for, size_px, training)
        reason = _shape_error(*arguments)
        if reason is None:
            continue
        nearest = _nearest_size(recipe, name, size_px, training)
        if (
            nearest is None
            and _shape_error(recipe.model, recipe.blur_pool, built_for, size_px, training, "cpu") is None
        ):
            continue  # a network that can't be computed on "meta", but for real
        remedy = f"use {name}={nearest}, or another model" if nearest else "use another size or another model"
        raise RecipeError(f"{name}={size_px}: {recipe.model} doesn't take images of {size_px} px ({reason}); {remedy}")
    if (chosen_by := recipe.proxy_filter) is not None:
        check_image_size(replace(recipe, model=chosen_by.model, proxy_filter=None, blur_pool=False, evaluate_size_px=0))


def _nearest_size(recipe: Recipe, name: str, size_px: int, training: bool) -> int | None:
    """Returns the size nearest to `size_px` that the network takes, of its own size and common ones, or None."""
    for size in sorted({*_COMMON_SIZES_PX, *_own_size(recipe.model)} - {size_px}, key=lambda size: abs(size - size_px)):
        built_for = size if name == "image_size_px" else recipe.image_size_px
        if _shape_error(recipe.model, recipe.blur_pool, built_for, size, training) is None:
            return size
    return None


def _own_size(name: str) -> tuple[int, ...]:
    """Returns the image size that a network of timm was made for, if it is one."""
    if not name.startswith("timm:"):
        return ()
    import timm

    configuration = timm.get_pretrained_cfg(name.removeprefix("timm:"), allow_unregistered=True)
    return (int(configuration.input_size[-1]),) if configuration else ()


def _shape_error(
    model: str, blur_pool: bool, built_for_px: int, size_px: int, training: bool, device: str = "meta"
) -> str | None:
    """Returns what the network raises for two images of `size_px`, as one line, or None. Raises RecipeError."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net = _built(model, blur_pool, 0 if model.startswith("timm:") else built_for_px, device)
            net.train(training)(torch.zeros(2, 3, size_px, size_px, device=device))
    except PipelineError:
        raise
    except Exception as error:  # whatever a network raises: RuntimeError, AssertionError, ValueError, IndexError ...
        return " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
    return None


@lru_cache(maxsize=4)
def _built(model: str, blur_pool: bool, built_for_px: int, device: str) -> nn.Module:
    with torch.device(device):
        net = make_model(model, 10, built_for_px)
        if blur_pool:
            add_blur_pool(net)
    return net
