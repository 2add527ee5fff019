"""Networks by name. Every one returns logits: softmax belongs to the loss."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipes import MODELS, check_choice


class SeedCnn(nn.Module):
    """The tutorial's CNN: 3x3 convolutions of 32, 64 and 64 with 2x2 max-pooling, dense 64, dense 10.

    The tutorial ends in softmax and trains with `from_logits=True`, which applies softmax twice and flattens the
    gradient: a bug. This one returns logits. Convolutions are unpadded, as Keras's default is.
    """

    def __init__(self, num_classes: int, image_size_px: int = 32) -> None:
        super().__init__()
        side = ((image_size_px - 2) // 2 - 2) // 2 - 2
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * side * side, 64), nn.ReLU(), nn.Linear(64, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # Keras's initialisation, on which the 10 epochs rest
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S]. Returns logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class _Block(nn.Module):
    """Convolution, pooling before the elementwise work (which is what costs on a CPU), then a residual one."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)), inplace=True)
        return x + F.relu(self.norm2(self.conv2(x)), inplace=True)


class FastResNet(nn.Module):
    """A small ResNet for 32-pixel images on a CPU: 32 million multiply-adds, most of them in large convolutions.

    The first layer is a frozen whitening of 2x2 patches (each direction and its negative), as in Page's and
    Jordan's CIFAR-10 speed runs (arXiv 2404.00498); `fit_whitening` sets it from training images.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (32, 128, 128)) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.requires_grad_(False)
        self.blocks = nn.Sequential(*[_Block(i, o) for i, o in pairwise((24, *widths))])
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)

    def fit_whitening(self, images: Tensor) -> None:
        """images: float [N, 3, S, S], normalised. Sets the first layer to whiten their patches."""
        patches = F.unfold(images.float(), 2).permute(0, 2, 1).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + 5e-4).sqrt()).T.flip(0)
        # The sign of an eigenvector is arbitrary; fix it, so that the same data gives the same network anywhere.
        kernels = kernels * kernels.gather(1, kernels.abs().argmax(1, keepdim=True)).sign()
        self.whitening.weight.data.copy_(torch.cat([kernels, -kernels]).reshape(24, 3, 2, 2))
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S]. Returns logits [N, num_classes]."""
        x = self.blocks(F.relu(self.whitening(images), inplace=True))
        logits: Tensor = self.classifier(x.amax(dim=(2, 3))) / 8
        return logits


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
    "seed-cnn": lambda _, num_classes, image_size_px: SeedCnn(num_classes, image_size_px),
    "alexnet": _alexnet,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _resnet),
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), _densenet),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg16"), _vgg),
}


def make_model(name: str, num_classes: int, image_size_px: int) -> nn.Module:
    """Returns an untrained network for float images [N, 3, S, S]. Raises RecipeError for an unknown name."""
    check_choice("model", name, MODELS)
    return _MAKERS[name](name, num_classes, image_size_px)


def num_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
