"""Networks by name: our own, torchvision's, and any of timm's where timm is installed. Every one returns logits:
softmax belongs to the loss.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn

from pipeline.config.choices import MODELS, check_choice
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.models.layers import add_blur_pool
from pipeline.models.small_networks import Airbench, FastResNet, SeedCnn


def _resnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= 64:  # the 32-pixel stem of He et al., section 4.2: 3x3, stride 1, no pooling
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _densenet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= 64:
        features = model.features
        features.conv0 = nn.Conv2d(3, features.conv0.out_channels, 3, padding=1, bias=False)
        features.pool0 = nn.Identity()
    return model


def _vgg(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= 64:  # five poolings leave one pixel of 32: no 7x7 grid, and one dense layer
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
    return model


def _alexnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= 64:  # 11x11 with stride 4 would leave 7 pixels of 32; 3x3 with stride 1 and two poolings
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
    "airbench96": lambda _, num_classes, __: Airbench(num_classes, (128, 512, 512), convolutions=3, norm_momentum=0.1),
    "seed-cnn": lambda _, num_classes, image_size_px: SeedCnn(num_classes, image_size_px),
    "alexnet": _alexnet,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _resnet),
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), _densenet),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg16"), _vgg),
}


def make_model(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    """Returns an untrained network for float images [N, 3, S, S]; "timm:NAME" is timm's.

    Raises RecipeError for an unknown name.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), num_classes)
    check_choice("model", name, MODELS)
    return _MAKERS[name](name, num_classes, image_size_px)


def _timm(name: str, num_classes: int) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise RecipeError(f"model='timm:{name}' needs the package timm on every node; install it or take another model")
    import timm

    check_choice("model", f"timm:{name}", tuple(f"timm:{known}" for known in timm.list_models()))
    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    return model


def recipe_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """Returns the untrained network of a recipe."""
    model = make_model(recipe.model, num_classes, recipe.image_size_px)
    if recipe.blur_pool:
        add_blur_pool(model)
    return model
