"""What a recipe is: every choice of a training run in one typed value, checked when it is made. Loads without torch.

The recipes themselves are in `pipeline/config/presets.py`.
"""

import difflib
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pipeline.core.errors import RecipeError

LossName = Literal["cross-entropy", "mse"]
OptimizerName = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lars", "lamb", "muon"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Residency = Literal["resident", "stream"]
OnCorrupt = Literal["stop", "quarantine"]
AutoName = Literal["none", "rand", "trivial"]
TestViews = Literal["none", "flip", "flip-and-shift"]

# The networks that models/factory.py makes. Named here, so that a typing error is found before torch is loaded.
MODELS = (
    "fast-resnet", "airbench-small", "airbench94", "airbench96", "seed-cnn", "alexnet", "resnet18", "resnet34",
    "resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201", "vgg11_bn", "vgg13_bn",
    "vgg16_bn", "vgg19_bn", "vgg11", "vgg16",
)  # fmt: skip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Augment:
    """What is done to a training image. The default does nothing.

    resized_crop_area: smallest and largest share of the area of a random resized crop; None for none.
    resized_crop_ratio: smallest and largest aspect ratio of that crop (Inception's 3/4 and 4/3).
    crop_padding_px: reflect-pad by this and crop back to the size at random.
    flip_probability: of a horizontal flip. flip_alternates: that draw decides the first epoch alone, and every later
    one shows the other side of the one before (Jordan, arXiv 2404.00498): in two epochs each image is seen both ways.
    rotation_degrees: the angle is uniform in [-x, x]; corners are filled with black.
    salt_and_pepper: expected share of pixels set to white or black, half each.
    brightness, contrast, saturation: factor uniform in [1-x, 1+x], as torchvision's ColorJitter; hue: shift in
    [-x, x], x <= 0.5.
    auto: "rand" is RandAugment: `rand_ops` operations of strength `rand_strength`, of 30; "trivial" is TrivialAugment.
    erase_probability: of erasing a rectangle of 2 to 33 % of the area (Zhong et al., arXiv 1708.04896), to grey.
    cutout_px: side of a square of mean colour, anywhere inside (DeVries and Taylor, arXiv 1708.04552).
    mixup_alpha, cutmix_alpha: of the Beta distribution that an image's share of a sample is drawn from; 0 for none.
    With both, each sample has one of them, by halves.
    """

    resized_crop_area: tuple[float, float] | None = None
    resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding_px: int = 0
    flip_probability: float = 0.0
    flip_alternates: bool = False
    rotation_degrees: float = 0.0
    salt_and_pepper: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase_probability: float = 0.0
    cutout_px: int = 0
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
        for name in ("crop_padding_px", "rotation_degrees", "cutout_px"):
            if getattr(self, name) < 0:
                raise RecipeError(f"augment.{name}={getattr(self, name)} must not be negative")
        area = self.resized_crop_area
        if area is not None and not 0 < area[0] <= area[1] <= 1:
            raise RecipeError(f"augment.resized_crop_area={area} must be two rising numbers in (0, 1]")

    @property
    def changes_samples(self) -> bool:
        """Whether anything is done sample by sample; erasing and mixing are done to a batch."""
        return replace(self, erase_probability=0.0, cutout_px=0, mixup_alpha=0.0, cutmix_alpha=0.0) != Augment()

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

    learning_rate: at its peak, for all but what the next ones name. head_rate: of linear layers beside Muon.
    bias_rate: of biases and normalisation; 0 for learning_rate. rest_momentum: of what Muon leaves to Nesterov's.
    weight_decay: of kernels and matrices, as torch means it: times the rate. bias_weight_decay: of biases and
    normalisation, which normally have none.
    whitening_bias_epochs: how long a whitening layer's bias is trained, its rate falling to zero.
    warmup_from: share of the peak that warm-up begins with. clip_norm: most that the gradient's norm may be; 0 for any.
    repeats: versions of an image, each augmented anew, that are in one batch (Hoffer et al., arXiv 1901.09335); over as
    many epochs each image is still seen once an epoch.
    accumulate_steps: forward and backward passes a step; each takes its part of a worker's rows.
    ema_decay: of an average of the weights, renewed every `ema_every_steps`, which is what is evaluated; 0 for none.
    look_ahead_every_steps: see `averages.LookAhead`; 0 for none.
    test_views: of each evaluated image: itself, with its mirror image, or that and shifted by a pixel (2404.00498).
    blur_pool: blur before each strided convolution and after pooling (Zhang, arXiv 1904.11486).
    compile: by torch.compile.
    distill_weight: share of the loss that is learnt from a teacher's outputs at `distill_temperature`, where a job has
    one (`distill.distillation_losses`).
    fit_seconds: 0 trains `epochs` epochs. Otherwise `epochs` is the most: a few steps are timed at the start, and
    the largest of FIT_EPOCHS that fits in this many seconds is taken, written down, and kept when resuming.
    residency: "resident" holds the decoded images in each worker's memory; "stream" reads them with Ray Data.
    shuffle_window_row_groups: how many row groups are mixed at a time; None mixes everything.
    shuffle_run_rows: rows that lie one after another and stay together in the order (`Order`), so that object storage
    is asked once for all of them; 1 for none.
    size_ramp: smaller images in the first epochs; None for one size. Needs residency "stream".
    evaluate_resize_px: the shorter side before the centre crop of `evaluate_size_px`, which is image_size_px where it
    is 0.
    precision: of the forward pass in training; "auto" is bfloat16 where the device computes in it, else float32.
    """

    name: str
    model: str
    image_size_px: int
    epochs: int
    global_batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    head_rate: float = 0.0
    bias_rate: float = 0.0
    momentum: float = 0.9
    rest_momentum: float = 0.9
    weight_decay: float = 0.0
    bias_weight_decay: float = 0.0
    whitening_bias_epochs: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    clip_norm: float = 0.0
    repeats: int = 1
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    ema_every_steps: int = 1
    look_ahead_every_steps: int = 0
    loss: LossName = "cross-entropy"
    label_smoothing: float = 0.0
    distill_weight: float = 0.5
    distill_temperature: float = 2.0
    augment: Augment = field(default_factory=Augment)
    residency: Residency = "stream"
    shuffle_window_row_groups: int | None = 32
    shuffle_run_rows: int = 1
    size_ramp: SizeRamp | None = None
    evaluate_size_px: int = 0
    evaluate_resize_px: int = 0
    test_views: TestViews = "none"
    blur_pool: bool = False
    compile: bool = False
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
            ("accumulate_steps", 1),
            ("repeats", 1),
            ("shuffle_run_rows", 1),
            ("ema_every_steps", 1),
            ("look_ahead_every_steps", 0),
            ("clip_norm", 0),
            ("weight_decay", 0),
        ):
            if getattr(self, name) < minimum:
                raise RecipeError(f"{name}={getattr(self, name)} must be {minimum} or more")
        for name in ("epochs", "global_batch_size"):
            if getattr(self, name) % self.repeats:
                nearest = max(1, round(getattr(self, name) / self.repeats)) * self.repeats
                raise RecipeError(
                    f"{name}={getattr(self, name)} must be a multiple of repeats={self.repeats}; use {nearest}"
                )
        if self.learning_rate <= 0:
            raise RecipeError(f"learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")
        if not 0 < self.distill_weight <= 1 or self.distill_temperature <= 0:
            raise RecipeError("distill_weight must lie in (0, 1] and distill_temperature be above 0")
        for name in ("ema_decay", "warmup_from"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        if self.ema_decay and self.look_ahead_every_steps:
            raise RecipeError("ema_decay and look_ahead_every_steps both average the weights; set one of them")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise RecipeError(f"warmup_epochs={self.warmup_epochs} must lie in [0, epochs={self.epochs})")
        hints = typing.get_type_hints(type(self))
        for name in ("optimizer", "schedule", "loss", "precision", "residency", "test_views"):
            check_choice(name, getattr(self, name), get_args(hints[name]))
        if not self.model.startswith("timm:"):
            check_choice("model", self.model, MODELS)
        if self.size_ramp is not None and (self.residency != "stream" or self.size_ramp.from_px > self.image_size_px):
            raise RecipeError("size_ramp needs residency='stream' and a from_px of at most image_size_px")
        if not self.evaluate_resize_px:
            object.__setattr__(self, "evaluate_resize_px", self.evaluate_size_px or self.image_size_px)


def recipe_from_json(values: dict[str, Any]) -> Recipe:
    """Returns the recipe whose `asdict` became `values` by way of JSON, where tuples are lists."""

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

    ramp = values["size_ramp"]
    own = {"augment": Augment(**tuples(values["augment"])), "size_ramp": SizeRamp(**ramp) if ramp else None}
    return Recipe(**{**tuples(values), **own})


def check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises RecipeError, with the nearest names first, unless `value` is one of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise RecipeError(f"{field_name}={value!r} is unknown; {hint}there are {', '.join(choices)}")


def check_batch(recipe: Recipe, num_workers: int, num_rows: int | None = None) -> None:
    """Raises RecipeError unless every one of `num_workers` gets rows in every step of an epoch of `num_rows`.

    num_rows: None while it isn't known. A batch that the workers don't divide is shared out unevenly.
    """
    size = recipe.global_batch_size
    least = num_workers * (2 if recipe.augment.mixes else 1)  # mixing takes pairs
    if size < least:
        raise RecipeError(f"global_batch_size={size} is too small for {num_workers} workers; use {least} or more")
    if num_rows is None:
        return
    smallest = num_rows // (recipe.repeats * -(-num_rows // size)) * recipe.repeats
    if smallest < least:
        raise RecipeError(
            f"global_batch_size={size} with {num_rows} training rows leaves steps of {smallest} rows for "
            f"{num_workers} workers; use a larger batch or fewer workers"
        )
