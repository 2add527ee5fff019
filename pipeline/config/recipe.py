"""Configuration of a training run: every choice in one typed value, checked on construction. Loads without torch.

The recipes that come with the package are in `pipeline/config/presets.py`. Names and fields of a recipe are part of a
run's identity: a resumed run compares them.
"""

import typing
from dataclasses import dataclass, field
from typing import get_args

from pipeline.config.augment import Augment
from pipeline.config.choices import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    HeadFit,
    LossName,
    OptimizerName,
    Precision,
    Residency,
    ScheduleName,
    ScheduleUnit,
    TestViews,
    check_choice,
    check_finite,
)
from pipeline.config.model_names import check_model
from pipeline.config.sampling import ProxyFilter, Sampling
from pipeline.core.errors import RecipeError
from pipeline.core.shares import counted


@dataclass(frozen=True)
class SizeRamp:
    """Progressive resizing: small images in the first epochs of training (as FFCV, Leclerc et al., arXiv 2306.12517).

    The size is `from_px` up to `first_epoch`, then grows linearly to the recipe's `image_size_px` at `last_epoch`.
    """

    from_px: int
    """Side of the images at first, in pixels; 8 or more."""

    first_epoch: int
    """Epoch, from 0, after which the size grows."""

    last_epoch: int
    """Epoch, from 0, from which on images have the recipe's size; `first_epoch` or more."""

    multiple_px: int = 32
    """Sizes in between are rounded to a multiple of this, in pixels. The default, 32, is the stride of a ResNet."""

    def __post_init__(self) -> None:
        if self.from_px < 8 or self.multiple_px < 1 or not 0 <= self.first_epoch <= self.last_epoch:
            raise RecipeError(f"size_ramp={self} needs from_px >= 8, multiple_px >= 1, 0 <= first_epoch <= last_epoch")

    def size_px(self, epoch: int, last_px: int) -> int:
        """Returns the side of an epoch's images, in pixels, where the recipe's own is `last_px`."""
        if epoch >= self.last_epoch:
            return last_px
        grown = max(0, epoch - self.first_epoch) / max(1, self.last_epoch - self.first_epoch)
        size = self.from_px + (last_px - self.from_px) * grown
        return min(last_px, max(self.from_px, round(size / self.multiple_px) * self.multiple_px))


@dataclass(frozen=True)
class Recipe:
    """Configuration of a training run, without the data, the seed and the number of workers.

    Raises RecipeError, with field, value and remedy, for values that can't work.
    """

    name: str
    """Name of the recipe, for reports."""

    model: str
    """Network: one of `MODELS`, or "timm:NAME" for a model of the timm package."""

    image_size_px: int
    """Side of the training images, in pixels; 8 or more."""

    epochs: int
    """Passes over the training rows, 1 or more; at most so many if `fit_seconds` is set."""

    global_batch_size: int
    """Images per step, over all workers and accumulation steps; with `proxy_filter`, those that it chooses from. Change
    the learning rate with it: linearly for SGD (Goyal et al., arXiv 1706.02677)."""

    optimizer: OptimizerName
    """Optimiser. "muon" (Jordan, https://kellerjordan.github.io/posts/muon/) takes the kernels of convolutions, and
    SGD with Nesterov momentum the other parameters; "lars" and "lamb" are for batches of several thousand images."""

    learning_rate: float
    """Peak learning rate, above 0, of all parameters that have no rate of their own below."""

    head_rate: float = 0.0
    """Peak learning rate of linear layers with optimizer="muon". The default, 0, means `learning_rate`."""

    bias_rate: float = 0.0
    """Peak learning rate of biases and normalisation layers. The default, 0, means `learning_rate`."""

    momentum: float = 0.9
    """Momentum of the optimisers that have one. The default, 0.9, is He et al.'s (arXiv 1512.03385)."""

    rest_momentum: float = 0.9
    """Nesterov momentum of the parameters that optimizer="muon" leaves to SGD."""

    weight_decay: float = 0.0
    """Weight decay of kernels and matrices, 0 or more, as torch defines it: multiplied by the learning rate. ImageNet
    recipes use 1e-4 for 90 epochs and less for short training."""

    corrected_weight_decay: bool = False
    """Whether the weight decay falls with the learning rate, so that the balance of both at the end is that of the peak
    (Defazio, arXiv 2506.02285): a step takes rate^2 / peak * weight_decay of the weights. Needs optimizer="adamw"."""

    bias_weight_decay: float = 0.0
    """Weight decay of biases and normalisation layers, 0 or more. The default is 0, none, as is usual."""

    whitening_bias_epochs: float = 0.0
    """Epochs in which the bias of a whitening layer is trained; its learning rate falls to zero meanwhile, unless
    `whitening_bias_rate` is given. The default, 0, trains it all the time (Jordan, arXiv 2404.00498, uses 3)."""

    whitening_bias_rate: float = 0.0
    """Peak learning rate of the bias of a whitening layer, 0 or more; it follows the schedule then, and its weight
    decay is scaled so that each step takes as much of it as of other biases. The default, 0, means `bias_rate`, and a
    rate that falls to zero over `whitening_bias_epochs`."""

    schedule: ScheduleName = "cosine"
    """Learning-rate schedule after the warm-up. "constant"; "step": times 0.1 at 1/2 and at 3/4; "cosine" to zero;
    "one-cycle": linear to zero; "parabola": to zero with the square of what is left, for LARS."""

    schedule_by: ScheduleUnit = "step"
    """Whether the learning rate changes with each "step", the default, or with each "epoch", as in timm's recipes:
    there the curve begins with the run, and the warm-up, from `warmup_from`, hides its first part."""

    warmup_epochs: float = 0.0
    """Epochs, or a fraction, in which the learning rate rises linearly to its peak; less than `epochs`. The default is
    0, none; 5 is usual for large batches (Goyal et al., arXiv 1706.02677)."""

    warmup_from: float = 0.0
    """Share of the peak learning rate at which the warm-up starts, in [0, 1)."""

    schedule_end: float = 0.0
    """Share of the peak learning rate that a falling schedule reaches at its end, in [0, 1). The default is 0. Takes
    effect with "cosine", "one-cycle" and "parabola"."""

    clip_norm: float = 0.0
    """Largest norm of the gradient, 0 or more; longer ones are scaled down. The default, 0, doesn't clip."""

    adaptive_clip: float = 0.0
    """Largest norm of the gradient of a unit, such as a channel's kernel, as a share of the norm of its weights, 0 or
    more; longer ones are scaled down, but for the last layer's (Brock et al., arXiv 2102.06171). The default, 0,
    doesn't clip; 0.01 to 0.16 are usual. Excludes `clip_norm`."""

    sam_radius: float = 0.0
    """Radius of sharpness-aware minimisation, 0 or more: gradients are those at weights this far uphill, so that flat
    minima are found (Foret et al., arXiv 2010.01412). A step costs twice as much. The default, 0, is none; 0.05 is
    usual."""

    layer_decay: float = 1.0
    """Factor of the learning rate from a layer, or residual block, to the one before it, in (0, 1]: the first layers of
    a pretrained network change least (BEiT, arXiv 2106.08254). The default, 1, is none; 0.65 to 0.9 are usual. For
    torchvision's ResNets and networks of timm; not with optimizer="muon"."""

    trust_clip: bool = False
    """Whether optimizer="lamb" lengthens no update: its ratio of the size of weights and update is 1 at most (LAMBC,
    Fong et al., arXiv 2011.13584)."""

    fit_head: HeadFit = "none"
    """Whether the last layer is fitted to the features of the pretrained network, which are computed once for each
    image, by logistic regression: "first" before the first step, so that training doesn't spoil the layers below at its
    beginning (Kumar et al., arXiv 2202.10054); "only" instead of training, in seconds, for few images. Features are
    computed as in evaluation, without dropout and with the statistics of BatchNorm that the weights came with. The
    default is "none". Needs pretrained weights."""

    frozen_epochs: float = 0.0
    """Epochs, or a fraction, in which the last layer's weights alone are trained, 0 or more. The default, 0, trains all
    from the start. The other layers run as in training: dropout is on, and statistics of BatchNorm follow the images.
    Each step costs as much as others; `fit_head` is faster. Not with optimizer="muon" or `fit_seconds`."""

    thaw_epochs: float = 0.0
    """Epochs after `frozen_epochs` in which layers, or residual blocks, begin to be trained one by one, from the last
    to the first (Howard and Ruder, arXiv 1801.06146). The default, 0, is all at once."""

    repeats: int = 1
    """Augmented versions of an image in one batch (batch augmentation, Hoffer et al., arXiv 1901.09335). Divides
    `global_batch_size` and `epochs`. Over that many epochs, each image is still seen once per epoch. The default is
    1."""

    accumulate_steps: int = 1
    """Forward and backward passes per step, each on its part of a worker's images. Increase it if a batch doesn't fit
    into memory; the default is 1."""

    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, in [0, 1). The average is what is evaluated. The default,
    0, keeps none."""

    ema_warmup_power: float = 0.0
    """Exponent p, in [0, 1], of a decay that grows with the number k of updates before: 1 - (1 + k)^-p, up to
    `ema_decay`, so that the first weights don't linger in the average. The default, 0, has a constant decay; timm's is
    2/3. Takes effect with `ema_decay`."""

    ema_every_steps: int = 1
    """Steps between two updates of the moving average, 1 or more. Takes effect with `ema_decay`."""

    look_ahead_every_steps: int = 0
    """Steps between two updates of Lookahead's slow weights (Zhang et al., arXiv 1907.08610). The default, 0, keeps
    none. Excludes `ema_decay`."""

    loss: LossName = "cross-entropy"
    """Loss: "cross-entropy"; "mse" between the class probabilities and the one-hot labels; or "binary-cross-entropy",
    which judges each class by itself, the mean over classes (Wightman et al., arXiv 2110.00476)."""

    sum_classes: bool = False
    """Whether loss="binary-cross-entropy" is the sum over classes. The default is the mean, which is smaller by the
    number of classes. Changes little with optimisers that don't heed the length of gradients, as Adam and LAMB."""

    target_threshold: float = 0.0
    """Threshold above which a target counts as 1, and as 0 otherwise, in [0, 1), after smoothing and mixing: an image
    that is mixed of two classes may show both. The default, 0, leaves targets as they are; Wightman et al. (arXiv
    2110.00476) use 0.2. Needs loss="binary-cross-entropy"."""

    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, in [0, 1) (Szegedy et al., arXiv 1512.00567). The default is 0;
    0.1 is usual."""

    distill_weight: float = 0.5
    """Share of the loss that compares with a teacher's outputs, in (0, 1]. Takes effect if a job has a teacher (Hinton
    et al., arXiv 1503.02531)."""

    distill_temperature: float = 2.0
    """Temperature at which the outputs of teacher and student are compared, above 0."""

    augment: Augment = field(default_factory=Augment)
    """Augmentation of the training images. The default is none."""

    residency: Residency = "stream"
    """Where decoded images are kept. "stream" reads and decodes them in every epoch; "resident" decodes a split once
    and keeps it in the memory of each worker, 3 * image_size_px^2 bytes per image."""

    shuffle_window_row_groups: int | None = 32
    """Row groups that are shuffled together, 1 or more; None shuffles the whole split. More mixes better, and fewer
    read less at a time from object storage with a cache."""

    shuffle_run_rows: int = 1
    """Consecutive rows that stay in one batch, so that object storage gets one request for them. The default, 1,
    shuffles single rows; increase it to 8 or so if requests to object storage limit the speed."""

    sampling: Sampling = field(default_factory=Sampling)
    """Which training rows an epoch holds, and how often. The default is every row once."""

    proxy_filter: ProxyFilter | None = None
    """Training on the hardest images of each batch alone, by the loss of a small network. None, the default, for all.
    Needs residency="resident"; excludes `repeats`, `fit_seconds`, MixUp and CutMix."""

    size_ramp: SizeRamp | None = None
    """Smaller images in the first epochs; None, the default, for one size. Needs residency="stream"."""

    evaluate_size_px: int = 0
    """Side of the evaluated images, in pixels. The default, 0, means `image_size_px`. A larger size than in training
    often gives better accuracy (Touvron et al., arXiv 1906.06423)."""

    evaluate_resize_px: int = 0
    """Shorter side of an image before the centre crop of evaluation, in pixels. The default, 0, means the size of the
    crop; ImageNet recipes use 256 for crops of 224."""

    test_views: TestViews = "none"
    """Test-time augmentation: views of an image whose outputs are averaged. "none": the image; "flip": also its mirror
    image; "flip-and-shift": also both shifted by a pixel (Jordan, arXiv 2404.00498)."""

    blur_pool: bool = False
    """Whether to blur before each strided convolution and after pooling (Zhang, arXiv 1904.11486). More accurate and
    slower."""

    stochastic_depth: float = 0.0
    """Probability with which the last residual block is left out for an image, in [0, 1); it grows from 0 at the first
    block linearly (Huang et al., arXiv 1603.09382). The default is 0; 0.05 is usual for ResNet-50 (arXiv 2110.00476).
    For torchvision's ResNets, and networks of timm that have it."""

    zero_init_residual: bool = False
    """Whether residual blocks add nothing at first: the scale of each one's last BatchNorm starts at 0 (Goyal et al.,
    arXiv 1706.02677, section 5.1). For torchvision's ResNets; those of timm start so by themselves."""

    compile: bool = False
    """Whether to compile the network, as the flag `--compile` does. Not part of a run's identity."""

    precision: Precision = "auto"
    """Precision of the forward pass in training. "auto", the default, is bfloat16 where the device computes in it,
    float16 on GPUs before Ampere (V100, T4), and float32 elsewhere. With "float16" the loss is scaled. On GPUs since
    Ampere "float32" multiplies in TF32 in training; evaluation is always in float32 proper."""

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of R, G and B that is subtracted, of values in [0, 1]. The default is ImageNet's."""

    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of R, G and B to divide by, of values in [0, 1]. The default is ImageNet's."""

    checkpoint_every_steps: int = 500
    """Steps between two checkpoints, 1 or more. At most so many steps are lost if a run is interrupted."""

    early_stop_epochs: int = 0
    """Epochs without a better top-1 on the evaluated images after which training stops. The default, 0, never stops
    early. Otherwise each epoch is evaluated, and the model is that of the best epoch. Such a top-1 is optimistic: keep
    images apart with `--hold-out` or a test split. Stopping saves most with schedules that don't fall to zero,
    "constant" and "step"."""

    fit_seconds: float = 0.0
    """Time budget in seconds. The default, 0, trains `epochs` epochs. Otherwise a few steps are timed at the start, and
    the largest number of epochs that fits into the budget, at most `epochs`, is chosen, recorded, and kept when the run
    is resumed."""

    def __post_init__(self) -> None:
        check_finite("", vars(self))
        _check_ranges(self)
        if self.ema_decay and self.look_ahead_every_steps:
            raise RecipeError("ema_decay and look_ahead_every_steps both average the weights; set one of them")
        _check_warmup(self)
        hints = typing.get_type_hints(type(self))
        for name in (
            "optimizer",
            "schedule",
            "schedule_by",
            "fit_head",
            "loss",
            "precision",
            "residency",
            "test_views",
        ):
            check_choice(name, getattr(self, name), get_args(hints[name]))
        check_model(self.model)
        if self.size_ramp is not None and (self.residency != "stream" or self.size_ramp.from_px > self.image_size_px):
            raise RecipeError("size_ramp needs residency='stream' and a from_px of at most image_size_px")
        if not 0 < self.layer_decay <= 1 or (self.layer_decay < 1 and self.optimizer == "muon"):
            raise RecipeError(f"layer_decay={self.layer_decay} must lie in (0, 1], and be 1 with optimizer=muon")
        if self.adaptive_clip and self.clip_norm:
            raise RecipeError("adaptive_clip and clip_norm both cut gradients; set one of them")
        _check_companions(self)
        _check_frozen(self)
        if self.proxy_filter is not None:
            _check_filtered(self)
        if not self.evaluate_resize_px:
            object.__setattr__(self, "evaluate_resize_px", self.evaluate_size_px or self.image_size_px)


def _check_ranges(recipe: Recipe) -> None:
    """Raises RecipeError for numbers out of their range, each by itself."""
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
        ("early_stop_epochs", 0),
        ("clip_norm", 0),
        ("weight_decay", 0),
        ("whitening_bias_rate", 0),
        ("adaptive_clip", 0),
        ("sam_radius", 0),
        ("frozen_epochs", 0),
        ("thaw_epochs", 0),
    ):
        if getattr(recipe, name) < minimum:
            raise RecipeError(f"{name}={getattr(recipe, name)} must be {minimum} or more")
    for name in ("epochs", "global_batch_size"):
        if getattr(recipe, name) % recipe.repeats:
            nearest = max(1, round(getattr(recipe, name) / recipe.repeats)) * recipe.repeats
            raise RecipeError(
                f"{name}={getattr(recipe, name)} must be a multiple of repeats={recipe.repeats}; use {nearest}"
            )
    if recipe.learning_rate <= 0:
        raise RecipeError(f"learning_rate={recipe.learning_rate} must be above 0")
    if not 0 <= recipe.label_smoothing < 1:
        raise RecipeError(f"label_smoothing={recipe.label_smoothing} must lie in [0, 1)")
    if not 0 < recipe.distill_weight <= 1 or recipe.distill_temperature <= 0:
        raise RecipeError("distill_weight must lie in (0, 1] and distill_temperature be above 0")
    for name in ("ema_decay", "warmup_from", "schedule_end", "target_threshold", "stochastic_depth"):
        if not 0 <= getattr(recipe, name) < 1:
            raise RecipeError(f"{name}={getattr(recipe, name)} must lie in [0, 1)")
    if not 0 <= recipe.ema_warmup_power <= 1:
        raise RecipeError(f"ema_warmup_power={recipe.ema_warmup_power} must lie in [0, 1]")


def _check_warmup(recipe: Recipe) -> None:
    if not 0 <= recipe.warmup_epochs < recipe.epochs:
        raise RecipeError(f"warmup_epochs={recipe.warmup_epochs} must lie in [0, epochs={recipe.epochs})")
    if recipe.schedule_by == "epoch" and recipe.warmup_epochs and not recipe.warmup_from:
        raise RecipeError(
            "schedule_by=epoch begins at warmup_from=0, which trains nothing for an epoch; use 0.01 or so"
        )


def _check_frozen(recipe: Recipe) -> None:
    until = recipe.frozen_epochs + recipe.thaw_epochs
    if until and recipe.optimizer == "muon":
        raise RecipeError("frozen_epochs and thaw_epochs don't go together with optimizer=muon; use adamw or nesterov")
    if until and recipe.fit_seconds:
        raise RecipeError(
            f"fit_seconds={recipe.fit_seconds} doesn't go together with frozen_epochs and thaw_epochs, as it may leave "
            "fewer epochs; set fit_seconds=0, or give --epochs"
        )
    if until >= recipe.epochs:
        raise RecipeError(
            f"frozen_epochs={recipe.frozen_epochs} and thaw_epochs={recipe.thaw_epochs} leave no epoch in which all is "
            f"trained; use less than epochs={recipe.epochs} together, more epochs, or fit_head=only"
        )


def _check_companions(recipe: Recipe) -> None:
    """Raises RecipeError for fields that another field's value has to go with."""
    for name, off, other, wanted in (
        ("target_threshold", "0", "loss", "binary-cross-entropy"),
        ("sum_classes", "false", "loss", "binary-cross-entropy"),
        ("trust_clip", "false", "optimizer", "lamb"),
        ("corrected_weight_decay", "false", "optimizer", "adamw"),
    ):
        value = getattr(recipe, name)
        if value and getattr(recipe, other) != wanted:
            raise RecipeError(f"{name}={value} needs {other}={wanted}; set it, or {off}")


def _check_filtered(recipe: Recipe) -> None:
    """Raises RecipeError for what doesn't go together with `proxy_filter`."""
    augment = recipe.augment
    for name, value, wanted in (
        ("residency", recipe.residency, "resident"),
        ("repeats", recipe.repeats, 1),
        ("fit_seconds", recipe.fit_seconds, 0),
        ("augment.mixup_alpha", augment.mixup_alpha, 0),
        ("augment.cutmix_alpha", augment.cutmix_alpha, 0),
    ):
        if value != wanted:
            raise RecipeError(
                f"{name}={value} doesn't go together with proxy_filter; set {name}={wanted}, or proxy_filter=none"
            )


def check_batch(recipe: Recipe, num_workers: int, num_rows: int | None = None) -> None:
    """Raises RecipeError unless each of `num_workers` gets rows in every step of an epoch of `num_rows`.

    num_rows: rows of an epoch; None while they aren't known. Workers may get different numbers of rows: no batch size
    has to be divisible by their number.
    """
    size = recipe.global_batch_size
    least = num_workers * (2 if recipe.augment.mixes else 1)  # mixing needs pairs
    if size < least:
        raise RecipeError(
            f"global_batch_size={size} is too small for {counted(num_workers, 'worker')}; use {least} or more"
        )
    if num_rows is None:
        return
    smallest = num_rows // (recipe.repeats * -(-num_rows // size)) * recipe.repeats
    if recipe.proxy_filter is not None:
        smallest = recipe.proxy_filter.num_kept(smallest)
    if smallest < least:
        raise RecipeError(
            f"global_batch_size={size} with {num_rows} training rows leaves steps of {counted(smallest, 'row')} "
            f"for {counted(num_workers, 'worker')}; use a larger batch{' or fewer workers' if num_workers > 1 else ''}"
        )
