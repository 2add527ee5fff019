"""RandAugment, TrivialAugment and AugMix: torchvision's or timm's operations and strengths, by keyed random numbers.

RandAugment (Cubuk et al., arXiv 1909.13719) applies `ops` operations of one strength; TrivialAugment (Müller and
Hutter, arXiv 2103.10158, "wide") applies one operation of random strength. Tables and operations equal those of
torchvision's RandAugment and TrivialAugmentWide to the last bit (tests/loader/test_augment.py). torchvision's own
classes can't be used, because they draw from torch's global generator.

timm's RandAugment ("increasing") and AugMix (Hendrycks et al., arXiv 1912.02781) have strengths of their own, on a
scale of 10, and fill with a mean colour; nothing of timm's is random by a key, and it works on PIL's images.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.loader.device.send import send

BINS = 31
LEVELS = 10.0  # of timm's scale
_MEAN_COLOUR = [124.0, 116.0, 104.0]  # ImageNet's, which fills what comes from outside an image
SIGNED = {"shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast", "sharpness"}
_TRANSLATE = 150.0 / 331.0  # of the side, as in AutoAugment
OPERATIONS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto-contrast", "equalize",
)  # fmt: skip
INCREASING = (
    "auto-contrast", "equalize", "invert", "smooth-rotate", "posterize", "solarize-at", "solarize-add", "color",
    "contrast", "brightness", "sharpness", "smooth-shear-x", "smooth-shear-y", "smooth-translate-x",
    "smooth-translate-y",
)  # fmt: skip
_AUGMIX = tuple(name for name in INCREASING if name not in ("invert", "solarize-add"))
AUGMIX_CHAINS, AUGMIX_MOST = 3, 3  # chains that are mixed, and operations in the longest one
AUGMIX_DRAWS = AUGMIX_CHAINS + 1 + AUGMIX_CHAINS * (1 + 3 * AUGMIX_MOST)
Operation = tuple[str, float]  # one of OPERATIONS or INCREASING, and its strength


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


def increasing_choices(
    ops: int, level: float, deviation: float, draws: npt.NDArray[np.float64], size: int
) -> list[Operation]:
    """Returns the `ops` operations of timm's RandAugment for an image; each is left out with a probability of 1/2.

    level: 0 to 10; deviation: of each operation's own. draws: float64 [4 * ops] in [0, 1). size: side of the image.
    """
    rows = draws.reshape(ops, 4).tolist()
    return [
        _increasing(INCREASING, row[1:], level, deviation, size) if row[0] < 0.5 else ("identity", 0.0) for row in rows
    ]


def _increasing(names: tuple[str, ...], draws: list[float], level: float, deviation: float, size: int) -> Operation:
    """draws: 3 numbers in [0, 1), for operation, strength and sign."""
    name = names[int(draws[0] * len(names))]
    if deviation:
        level = min(LEVELS, max(0.0, level + deviation * float(ndtri(draws[1]))))
    return name, increasing_strength(name, level, size, draws[2] < 0.5)


def increasing_strength(name: str, level: float, size: int, negative: bool) -> float:
    """Returns the strength of one of INCREASING. level: 0 to 10. size: of the image. negative: its sign, if any."""
    share = level / LEVELS
    if name == "posterize":
        return float(max(1, 4 - int(4 * share)))  # timm passes on 0 bits, which PIL refuses today
    if name == "solarize-at":
        return float(256 - min(256, int(256 * share)))
    if name == "solarize-add":
        return float(min(128, int(110 * share)))
    largest = {"smooth-rotate": 30.0, "smooth-shear-x": 0.3, "smooth-shear-y": 0.3, "smooth-translate-x": 0.45 * size,
               "smooth-translate-y": 0.45 * size, "brightness": 0.9, "color": 0.9, "contrast": 0.9,
               "sharpness": 0.9}  # fmt: skip
    value = share * largest.get(name, 0.0)
    return -value if negative else value


def augmix_choices(level: float, deviation: float, draws: npt.NDArray[np.float64], size: int) -> "Mixed":
    """Returns what AugMix does to an image. draws: float64 [AUGMIX_DRAWS] in [0, 1).

    Three chains of one to three operations, with weights from Dirichlet(1, 1, 1); the share of their mixture in the
    image is uniform, which is Beta(1, 1).
    """
    weights = -np.log(1.0 - draws[:AUGMIX_CHAINS])
    chains = []
    for row in draws[AUGMIX_CHAINS + 1 :].reshape(AUGMIX_CHAINS, -1).tolist():
        turns = [row[1 + 3 * turn : 4 + 3 * turn] for turn in range(1 + int(row[0] * AUGMIX_MOST))]
        chains.append([_increasing(_AUGMIX, turn, level, deviation, size) for turn in turns])
    return Mixed(tuple(weights / max(weights.sum(), 1e-12)), tuple(chains), float(draws[AUGMIX_CHAINS]))


@dataclass(frozen=True)
class Mixed:
    """What AugMix does to an image: weights of the chains, their operations, and the share of the mixture."""

    weights: tuple[float, ...]
    chains: tuple[list[Operation], ...]
    share: float

    def apply(self, image: Tensor) -> Tensor:
        """Returns the image, uint8 [3, S, S], blended with the mixture of its chains, which is rounded down first."""
        mixture = torch.zeros(image.shape, device=image.device)
        for weight, chain in zip(self.weights, self.chains, strict=True):
            mixture += weight * apply_in_turn(image, chain).float()
        mixture = mixture.clamp(0, 255).floor()
        return (image + self.share * (mixture - image)).to(torch.uint8)


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


def _smooth(
    image: Tensor, angle: float = 0.0, move: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    """Returns the image rotated, moved or sheared from its corner; interpolated, and filled with the mean colour."""
    degrees = [math.degrees(math.atan(each)) for each in shear]
    how: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": _MEAN_COLOUR}
    if angle:
        return F.rotate(image, angle, **how)
    return F.affine(image, angle=0.0, translate=list(move), scale=1.0, shear=degrees, center=[0, 0], **how)


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
    "invert": lambda image, _: F.invert(image),
    "solarize-at": lambda image, value: torch.where(image < value, image, 255 - image),
    "solarize-add": lambda image, value: torch.where(
        image < 128, image.clamp(max=int(255 - value)) + int(value), image
    ),
    "smooth-rotate": lambda image, value: _smooth(image, angle=value),
    "smooth-shear-x": lambda image, value: _smooth(image, shear=(value, 0.0)),
    "smooth-shear-y": lambda image, value: _smooth(image, shear=(0.0, value)),
    "smooth-translate-x": lambda image, value: _smooth(image, move=(-value, 0.0)),
    "smooth-translate-y": lambda image, value: _smooth(image, move=(0.0, -value)),
}
