"""Names that a recipe chooses among, and the check that reports the nearest one for a misspelt name."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.core.errors import RecipeError

LossName = Literal["cross-entropy", "mse", "binary-cross-entropy"]
OptimizerName = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lars", "lamb", "muon"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle", "parabola"]
ScheduleUnit = Literal["step", "epoch"]
HeadFit = Literal["none", "first", "only"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Residency = Literal["resident", "stream"]
OnCorrupt = Literal["stop", "quarantine"]
AutoName = Literal["none", "rand", "trivial", "rand-increasing", "augmix"]
TestViews = Literal["none", "flip", "flip-and-shift"]

# The networks of models/factory.py. They are listed here so that a misspelt name is reported before torch is imported.
MODELS = (
    "fast-resnet", "airbench-small", "airbench94", "airbench95", "airbench96", "airbench96-slim", "airbench-proxy",
    "seed-cnn", "alexnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet169",
    "densenet201", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg16",
)  # fmt: skip

# Channel statistics of R, G and B, of values in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def unknown_choice(field_name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns the message for a value that isn't one of `choices`, the nearest ones first."""
    near = difflib.get_close_matches(value, choices, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{field_name}={value!r} is unknown; {hint}there are {', '.join(choices)}"


def check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises RecipeError, with the nearest names first, unless `value` is one of `choices`."""
    if value not in choices:
        raise RecipeError(unknown_choice(field_name, value, choices))


def check_finite(prefix: str, values: Mapping[str, Any]) -> None:
    """Raises RecipeError if a number, or one in a tuple, is infinite or not a number. prefix: of the names."""
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise RecipeError(f"{prefix}{name}={value} must be finite")
