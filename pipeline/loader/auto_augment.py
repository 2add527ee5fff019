"""RandAugment and TrivialAugment: torchvision's operations and strengths, with keyed random numbers.

RandAugment (Cubuk et al., arXiv 1909.13719) applies `ops` operations of one strength; TrivialAugment (Müller and
Hutter, arXiv 2103.10158, "wide") applies one operation of random strength. Tables and operations equal those of
torchvision's RandAugment and TrivialAugmentWide to the last bit (tests/loader/test_augment.py). torchvision's own
classes can't be used, because they draw from torch's global generator.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pipeline.loader.device.send import send

BINS = 31
SIGNED = {"shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast", "sharpness"}
_TRANSLATE = 150.0 / 331.0  # of the side, as in AutoAugment
OPERATIONS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto-contrast", "equalize",
)  # fmt: skip
Operation = tuple[str, float]  # one of OPERATIONS, and its strength


def rand_choices(ops: int, strength: int, draws: npt.NDArray[np.float64], size: int) -> list[Operation]:
    """Returns the `ops` operations of RandAugment for an image.

    strength: 0 to BINS - 1. draws: float64 [2 * ops] in [0, 1), operation and sign of each. size: side of the image.
    """
    names = [(OPERATIONS[int(choice * len(OPERATIONS))], sign) for choice, sign in draws.reshape(ops, 2).tolist()]
    return [(name, _signed(name, rand_strength(name, strength, size), sign)) for name, sign in names]


def trivial_choice(draws: npt.NDArray[np.float64]) -> list[Operation]:
    """Returns the operation of TrivialAugment for an image.

    draws: float64 [3] in [0, 1), for operation, strength and sign.
    """
    choice, strength, sign = draws.tolist()
    name = OPERATIONS[int(choice * len(OPERATIONS))]
    return [(name, _signed(name, trivial_strength(name, int(strength * BINS)), sign))]


def apply_in_turn(image: Tensor, operations: list[Operation]) -> Tensor:
    """Returns the image after its operations, uint8 [3, S, S]."""
    for name, value in operations:
        image = apply(image, name, value)
    return image


def apply_alike(images: Tensor, operations: list[list[Operation]]) -> Tensor:
    """Returns each image after its operations, uint8 [N, 3, S, S]: those with the same one go through it together.

    operations: as many for each image. The bytes are those of `apply_in_turn` up to 256 px; in larger images the mean
    that contrast takes may round otherwise.
    """
    images = images.clone()
    for turn in zip(*operations, strict=True):
        places: dict[Operation, list[int]] = defaultdict(list)
        for place, operation in enumerate(turn):
            if operation[0] != "identity":
                places[operation].append(place)
        for (name, value), those in places.items():
            index = send(np.array(those), images.device)
            images[index] = apply(images[index], name, value)
    return images


def _signed(name: str, value: float, draw: float) -> float:
    return -value if name in SIGNED and draw < 0.5 else value


def _level(largest: float, bin_: int) -> float:
    """Returns the value of a bin, computed in float32 as torchvision does."""
    return float(torch.linspace(0.0, largest, BINS)[bin_])


def rand_strength(name: str, bin_: int, size: int) -> float:
    """Returns the unsigned strength of an operation of RandAugment. bin_: 0 to BINS - 1. size: side of the image."""
    largest = {"shear-x": 0.3, "shear-y": 0.3, "translate-x": _TRANSLATE * size, "translate-y": _TRANSLATE * size,
            "rotate": 30.0}  # fmt: skip
    return _strength(name, bin_, largest, 0.9, 4)


def trivial_strength(name: str, bin_: int) -> float:
    """Returns the unsigned strength of an operation of TrivialAugment. bin_: 0 to BINS - 1."""
    largest = {"shear-x": 0.99, "shear-y": 0.99, "translate-x": 32.0, "translate-y": 32.0, "rotate": 135.0}
    return _strength(name, bin_, largest, 0.99, 6)


def _strength(name: str, bin_: int, largest: dict[str, float], colour: float, bits: int) -> float:
    """largest: strengths of the geometric operations in the last bin; colour: of the colour operations. bits: that
    posterize removes in the last bin.
    """
    if name in largest:
        return _level(largest[name], bin_)
    if name in ("brightness", "color", "contrast", "sharpness"):
        return _level(colour, bin_)
    if name == "posterize":
        return float((8 - torch.tensor(bin_) / ((BINS - 1) / bits)).round())
    if name == "solarize":
        return float(torch.linspace(1.0, 0.0, BINS)[bin_])
    return 0.0


def apply(image: Tensor, name: str, value: float) -> Tensor:
    """Returns the image after one operation. Pixels from outside the image are black; nothing is interpolated."""
    return _APPLY[name](image, value)


def _shear(image: Tensor, x: float, y: float) -> Tensor:
    angles = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0])


def _translate(image: Tensor, x: int, y: int) -> Tensor:
    return F.affine(image, angle=0.0, translate=[x, y], scale=1.0, shear=[0.0, 0.0])


_APPLY: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, _: image,
    "shear-x": lambda image, value: _shear(image, value, 0.0),
    "shear-y": lambda image, value: _shear(image, 0.0, value),
    "translate-x": lambda image, value: _translate(image, int(value), 0),
    "translate-y": lambda image, value: _translate(image, 0, int(value)),
    "rotate": lambda image, value: F.rotate(image, value),
    "brightness": lambda image, value: F.adjust_brightness(image, 1.0 + value),
    "color": lambda image, value: F.adjust_saturation(image, 1.0 + value),
    "contrast": lambda image, value: F.adjust_contrast(image, 1.0 + value),
    "sharpness": lambda image, value: F.adjust_sharpness(image, 1.0 + value),
    "posterize": lambda image, value: F.posterize(image, int(value)),
    "solarize": lambda image, value: F.solarize(image, 255.0 * value),
    "auto-contrast": lambda image, _: F.autocontrast(image),
    "equalize": lambda image, _: F.equalize(image),
}
