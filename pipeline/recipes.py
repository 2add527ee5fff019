"""Recipes: every choice of a training run in one typed value, checked when it is made. Loads without torch."""

import difflib
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pipeline.errors import RecipeError

LossName = Literal["cross-entropy", "mse"]
OptimizerName = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Residency = Literal["resident", "stream"]
OnCorrupt = Literal["stop", "quarantine"]
AutoName = Literal["none", "rand", "trivial"]

# The networks that pipeline/models.py makes. Named here, so that a typing error is found before torch is loaded.
MODELS = (
    "fast-resnet", "seed-cnn", "alexnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "densenet121", "densenet169", "densenet201", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg16",
)  # fmt: skip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Augment:
    """What is done to a training image. The default does nothing.

    resized_crop_area: smallest and largest share of the area of a random resized crop; None for none.
    resized_crop_ratio: smallest and largest aspect ratio of that crop (Inception's 3/4 and 4/3).
    crop_padding_px: reflect-pad by this and crop back to the size at random.
    flip_probability: of a horizontal flip.
    rotation_degrees: the angle is uniform in [-x, x]; corners are filled with black.
    salt_and_pepper: expected share of pixels set to white or black, half each.
    brightness, contrast, saturation: factor uniform in [1-x, 1+x], as torchvision's ColorJitter; hue: shift in
    [-x, x], x <= 0.5.
    auto: "rand" is RandAugment: `rand_ops` operations of strength `rand_strength`, of 30; "trivial" is TrivialAugment.
    erase_probability: of erasing a rectangle of 2 to 33 % of the area (Zhong et al., arXiv 1708.04896), to grey.
    mixup_alpha, cutmix_alpha: of the Beta distribution that an image's share of a sample is drawn from; 0 for none.
    With both, each sample has one of them, by halves.
    """

    resized_crop_area: tuple[float, float] | None = None
    resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding_px: int = 0
    flip_probability: float = 0.0
    rotation_degrees: float = 0.0
    salt_and_pepper: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase_probability: float = 0.0
    auto: AutoName = "none"
    rand_ops: int = 2
    rand_strength: int = 9
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        check_choice("augment.auto", self.auto, get_args(AutoName))
        if self.rand_ops < 1 or not 0 <= self.rand_strength <= 30:
            raise RecipeError("augment.rand_ops must be 1 or more and augment.rand_strength in [0, 30]")
        if self.mixup_alpha < 0 or self.cutmix_alpha < 0:
            raise RecipeError("augment.mixup_alpha and augment.cutmix_alpha must not be negative")
        shares = ("flip_probability", "salt_and_pepper", "brightness", "contrast", "saturation", "erase_probability")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"augment.{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.hue <= 0.5:
            raise RecipeError(f"augment.hue={self.hue} must lie in [0, 0.5]")
        if self.crop_padding_px < 0 or self.rotation_degrees < 0:
            raise RecipeError("augment.crop_padding_px and augment.rotation_degrees must not be negative")
        area = self.resized_crop_area
        if area is not None and not 0 < area[0] <= area[1] <= 1:
            raise RecipeError(f"augment.resized_crop_area={area} must be two rising numbers in (0, 1]")

    @property
    def changes_samples(self) -> bool:
        """Whether anything is done sample by sample; erasing and mixing are done to a batch."""
        return replace(self, erase_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0) != Augment()

    @property
    def mixes(self) -> bool:
        """Whether samples are made of two images each."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @property
    def jitters(self) -> bool:
        """Whether any colour changes."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


@dataclass(frozen=True)
class SizeRamp:
    """Small images first: `from_px` up to `first_epoch`, then evenly, in steps of `multiple_px`, to the recipe's size,
    which it has from `last_epoch` on. Epochs count from 0. FFCV's recipes do so (Leclerc et al., arXiv 2306.12517).
    """

    from_px: int
    first_epoch: int
    last_epoch: int
    multiple_px: int = 32

    def __post_init__(self) -> None:
        if self.from_px < 8 or self.multiple_px < 1 or not 0 <= self.first_epoch <= self.last_epoch:
            raise RecipeError(f"size_ramp={self} needs from_px >= 8, multiple_px >= 1, 0 <= first_epoch <= last_epoch")

    def size_px(self, epoch: int, last_px: int) -> int:
        """Returns the size of an epoch's images where the recipe's own is `last_px`."""
        if epoch >= self.last_epoch:
            return last_px
        grown = max(0, epoch - self.first_epoch) / max(1, self.last_epoch - self.first_epoch)
        size = self.from_px + (last_px - self.from_px) * grown
        return min(last_px, max(self.from_px, round(size / self.multiple_px) * self.multiple_px))


@dataclass(frozen=True)
class Recipe:
    """A training run, but for data, seed and number of workers.

    fit_seconds: 0 trains `epochs` epochs. Otherwise `epochs` is the most: a few steps are timed at the start, and
    the largest of FIT_EPOCHS that fits in this many seconds is taken, written down, and kept when resuming.
    residency: "resident" holds the decoded images in each worker's memory; "stream" reads them with Ray Data.
    shuffle_window_row_groups: how many row groups are mixed at a time; None mixes everything.
    size_ramp: smaller images in the first epochs; None for one size. Needs residency "stream".
    evaluate_resize_px: the shorter side before the centre crop of `image_size_px`.
    precision: of the forward pass in training; "auto" is bfloat16 where the device computes in it, else float32.
    """

    name: str
    model: str
    image_size_px: int
    epochs: int
    global_batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    loss: LossName = "cross-entropy"
    label_smoothing: float = 0.0
    augment: Augment = field(default_factory=Augment)
    residency: Residency = "stream"
    shuffle_window_row_groups: int | None = 32
    size_ramp: SizeRamp | None = None
    evaluate_resize_px: int = 0
    precision: Precision = "auto"
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    checkpoint_every_steps: int = 500
    fit_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, minimum in (
            ("image_size_px", 8),
            ("epochs", 1),
            ("global_batch_size", 1),
            ("checkpoint_every_steps", 1),
        ):
            if getattr(self, name) < minimum:
                raise RecipeError(f"{name}={getattr(self, name)} must be {minimum} or more")
        if self.learning_rate <= 0:
            raise RecipeError(f"learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise RecipeError(f"warmup_epochs={self.warmup_epochs} must lie in [0, epochs={self.epochs})")
        hints = typing.get_type_hints(type(self))
        for name in ("optimizer", "schedule", "loss", "precision", "residency"):
            check_choice(name, getattr(self, name), get_args(hints[name]))
        check_choice("model", self.model, MODELS)
        if self.size_ramp is not None and (self.residency != "stream" or self.size_ramp.from_px > self.image_size_px):
            raise RecipeError("size_ramp needs residency='stream' and a from_px of at most image_size_px")
        if not self.evaluate_resize_px:
            object.__setattr__(self, "evaluate_resize_px", self.image_size_px)


def check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises RecipeError, with the nearest names first, unless `value` is one of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise RecipeError(f"{field_name}={value!r} is unknown; {hint}there are {', '.join(choices)}")


def cifar10() -> Recipe:
    """The best accuracy in five minutes on 2 CPU cores; a GPU trains all 16 epochs.

    Source: our own search (docs/log.md) from Jordan's speed runs (arXiv 2404.00498): whitening, Muon, label
    smoothing, crops of 2 px and flips. Measured: see the README's results.
    """
    return Recipe(
        name="cifar10", model="fast-resnet", image_size_px=32, epochs=16, fit_seconds=285, global_batch_size=512,
        optimizer="muon", learning_rate=0.24, momentum=0.6, weight_decay=5e-4, schedule="one-cycle",
        label_smoothing=0.1, augment=Augment(crop_padding_px=2, flip_probability=0.5), residency="resident",
        shuffle_window_row_groups=None, pixel_mean=CIFAR_MEAN, pixel_std=CIFAR_STD, checkpoint_every_steps=50,
    )  # fmt: skip


def seed_cnn() -> Recipe:
    """The tutorial's CNN, its ten epochs of Adam, and nothing else. Published: "over 70 %"."""
    return Recipe(
        name="seed-cnn", model="seed-cnn", image_size_px=32, epochs=10, global_batch_size=64, optimizer="adam",
        learning_rate=1e-3, schedule="constant", residency="resident", shuffle_window_row_groups=None,
        pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0), checkpoint_every_steps=200, precision="float32",
    )  # fmt: skip


def digits() -> Recipe:
    """scikit-learn's digits, where CIFAR-10 can't be had: `cifar10` without flips, for a mirrored 2 is no 2."""
    return replace(
        cifar10(), name="digits", epochs=16, fit_seconds=0.0, global_batch_size=128,
        augment=Augment(crop_padding_px=2), pixel_mean=(0.3, 0.3, 0.3), pixel_std=(0.35, 0.35, 0.35),
    )  # fmt: skip


def _cifar_classic(name: str, model: str, **changes: Any) -> Recipe:
    """The 32-pixel version of a classic network, trained as He et al. (1512.03385, section 4.2) did: slow on a CPU."""
    base = Recipe(
        name=name, model=model, image_size_px=32, epochs=30, global_batch_size=128, optimizer="momentum",
        learning_rate=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=1, residency="resident",
        augment=Augment(crop_padding_px=4, flip_probability=0.5), shuffle_window_row_groups=None,
        pixel_mean=CIFAR_MEAN, pixel_std=CIFAR_STD, checkpoint_every_steps=100,
    )  # fmt: skip
    return replace(base, **changes)


def _imagenet(name: str, model: str, **changes: Any) -> Recipe:
    """A classic network on ImageNet-like data: crops of 8 to 100 % of the area and flips (1409.4842, 1512.03385)."""
    base = Recipe(
        name=name, model=model, image_size_px=224, evaluate_resize_px=256, epochs=90, global_batch_size=256,
        optimizer="nesterov", learning_rate=0.1, weight_decay=1e-4, schedule="cosine", warmup_epochs=5,
        augment=Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5), residency="stream",
    )  # fmt: skip
    return replace(base, **changes)


def _imagenet_smoke() -> Recipe:
    """One epoch of a ResNet-18 at 128 px: shows that a cluster, its storage and a data set work together."""
    return _imagenet(
        "resnet18-smoke", "resnet18", image_size_px=128, evaluate_resize_px=144, epochs=1, global_batch_size=64,
        optimizer="adamw", learning_rate=1e-3, warmup_epochs=0.25, checkpoint_every_steps=50,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "cifar10": cifar10,
    "seed-cnn": seed_cnn,
    "digits": digits,
    "cifar10-alexnet": lambda: _cifar_classic("cifar10-alexnet", "alexnet", learning_rate=0.02),
    "cifar10-vgg11": lambda: _cifar_classic("cifar10-vgg11", "vgg11_bn", learning_rate=0.05),
    "cifar10-resnet18": lambda: _cifar_classic("cifar10-resnet18", "resnet18"),
    "cifar10-densenet121": lambda: _cifar_classic("cifar10-densenet121", "densenet121"),
    "resnet18-smoke": _imagenet_smoke,
    "resnet18": lambda: _imagenet("resnet18", "resnet18"),
    "resnet50": lambda: _imagenet("resnet50", "resnet50"),
    "alexnet": lambda: _imagenet("alexnet", "alexnet", learning_rate=0.01, weight_decay=5e-4),
    "vgg16": lambda: _imagenet("vgg16", "vgg16_bn", learning_rate=0.02, weight_decay=5e-4),
    "densenet121": lambda: _imagenet("densenet121", "densenet121"),
}


def make_recipe(name: str, **changes: Any) -> Recipe:
    """Returns the named recipe with fields changed; `epochs` given by hand switches `fit_seconds` off.

    Raises RecipeError for an unknown name (with the nearest) or a value that can't work.
    """
    check_choice("recipe", name, tuple(RECIPES))
    recipe = RECIPES[name]()
    given = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in given:
        given["fit_seconds"] = 0.0
        given.setdefault("warmup_epochs", min(recipe.warmup_epochs, given["epochs"] / 4))
    return replace(recipe, **given) if given else recipe


def check_batch(recipe: Recipe, num_workers: int, num_rows: int | None = None) -> None:
    """Raises RecipeError unless every one of `num_workers` gets rows in every step of an epoch of `num_rows`.

    num_rows: None while it isn't known; then only divisibility is checked.
    """
    size = recipe.global_batch_size
    if size % num_workers:
        low = size // num_workers * num_workers
        near = " or ".join(str(n) for n in (low, low + num_workers) if n)
        raise RecipeError(f"global_batch_size={size} is not divisible by {num_workers} workers; use {near}")
    if num_rows is None:
        return
    smallest = num_rows // -(-num_rows // size)
    if smallest < num_workers * (2 if recipe.augment.mixes else 1):  # mixing takes pairs
        raise RecipeError(
            f"global_batch_size={size} with {num_rows} training rows leaves steps of {smallest} rows for "
            f"{num_workers} workers; use a larger batch or fewer workers"
        )
