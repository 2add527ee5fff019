"""Networks by name: this package's own, torchvision's, and timm's where timm is installed.

Every network takes float images [N, 3, S, S] and returns logits [N, C]; the loss applies the softmax. torchvision's
networks are built for 224 pixels; for images of up to 64 pixels their first layers, or their last, are replaced.
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

_SMALL_IMAGE_PX = 64  # and below: a first layer of stride 4, as for 224 pixels, would leave too few pixels


def _resnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:  # as He et al., 1512.03385, section 4.2: 3x3, stride 1, no pooling
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _densenet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:
        features = model.features
        features.conv0 = nn.Conv2d(3, features.conv0.out_channels, 3, padding=1, bias=False)
        features.pool0 = nn.Identity()
    return model


def _vgg(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
    if image_size_px <= _SMALL_IMAGE_PX:  # five poolings leave 1 pixel of 32, not 7x7; one linear layer is enough
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
    return model


def _alexnet(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    model: Any = torchvision.models.get_model(name, num_classes=num_classes)
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
    "airbench96": lambda _, num_classes, __: Airbench(num_classes, (128, 512, 512), convolutions=3, norm_momentum=0.1),
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
    """Returns the untrained network of a recipe, with `blur_pool` applied."""
    model = make_model(recipe.model, num_classes, recipe.image_size_px)
    if recipe.blur_pool:
        add_blur_pool(model)
    return model


def _timm(name: str, num_classes: int) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise RecipeError(
            f"model='timm:{name}' needs the package timm on every node; install it or choose another model"
        )
    import timm

    check_choice("model", f"timm:{name}", tuple(f"timm:{known}" for known in timm.list_models()))
    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    return model
