"""Networks by name: our own, torchvision's, and any of timm's where timm is installed. Every one returns logits:
softmax belongs to the loss.
"""

import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.recipe import MODELS, Recipe, check_choice
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.models import checkpoint
from pipeline.models.small_networks import Airbench, FastResNet, SeedCnn
from pipeline.storage import files


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


def load_pretrained(model: nn.Module, uri: str) -> None:
    """Puts the weights of a .safetensors file, or of a .pt file without code in it, into a network.

    The last layer may have other classes, and begins anew then. Raises CheckpointError if anything else doesn't fit.
    """
    if uri.endswith(".safetensors"):
        weights = checkpoint.read_tensors(uri)
    else:
        try:
            weights = torch.load(io.BytesIO(files.read_bytes(uri)), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever it meets: RuntimeError, UnpicklingError, EOFError ...
            raise CheckpointError(f"pretrained={uri}: no weights ({str(error)[:120]}); give a state_dict") from error
        weights = weights.get("model", weights.get("state_dict", weights))
    own = model.state_dict()
    others = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    head = [name for name in own if name.rpartition(".")[0] == list(own)[-1].rpartition(".")[0]]
    if missing or unknown or not set(others) <= set(head):
        wrong = [f"{name}: missing" for name in missing] + [f"{name}: unknown" for name in unknown]
        wrong += [f"{name}: {tuple(weights[name].shape)} for {tuple(own[name].shape)}" for name in others]
        raise CheckpointError(f"pretrained={uri}: doesn't fit the model ({'; '.join(wrong[:3])}); give its own weights")
    kept = {name: tensor for name, tensor in weights.items() if not (others and name in head)}
    model.load_state_dict(kept, strict=False)


class BlurPool(nn.Module):
    """Blurs with [1 2 1] x [1 2 1] / 16 before a strided convolution (Zhang, arXiv 1904.11486)."""

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.conv = conv
        self.register_buffer("blur", (line[:, None] * line / 16).expand(conv.in_channels, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the convolution's shapes."""
        return self.conv(F.conv2d(x, self.blur.to(x.dtype), padding=1, groups=len(self.blur)))


def add_blur_pool(model: nn.Module) -> None:
    """Puts a blur before each strided convolution of 16 channels and more, as FFCV's recipes do."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(model, name, BlurPool(child))
        else:
            add_blur_pool(child)


def num_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
