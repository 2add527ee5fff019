"""Configuration of the augmentation of training images."""

from dataclasses import dataclass, replace
from typing import get_args

from pipeline.config.choices import AutoName, check_choice, check_finite
from pipeline.core.errors import RecipeError


@dataclass(frozen=True)
class Augment:
    """Augmentation of a training image. Without arguments, images are left as they are.

    The operations are done in the order of `pipeline.loader.augment`; erasing, cutout and mixing are done last, to
    whole batches on the device (`pipeline.models.batch_transforms`). Raises RecipeError for values out of range.
    """

    resized_crop_area: tuple[float, float] | None = None
    """Smallest and largest area of a random resized crop, as shares of the image in (0, 1]. None, the default, crops
    nothing. ImageNet recipes use (0.08, 1.0) (Szegedy et al., arXiv 1409.4842); use a larger minimum, such as 0.35, for
    short training."""

    resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio, width by height, of the random resized crop. The default is that of Szegedy et
    al. (arXiv 1409.4842) and torchvision."""

    crop_padding_px: int = 0
    """Pixels of reflection padding on each side before a random crop back to the original size. The default is 0, no
    padded crop; 2 to 4 is usual for images of 32 px."""

    flip_probability: float = 0.0
    """Probability of a horizontal flip, in [0, 1]. The default is 0; 0.5 suits photographs, but not digits or text."""

    flip_alternates: bool = False
    """Whether the flip is drawn once and then alternates from epoch to epoch. Each image is then seen both ways in any
    two epochs (Jordan, arXiv 2404.00498). Helps short training."""

    rotation_degrees: float = 0.0
    """Largest rotation, in degrees: the angle is uniform in [-x, x], corners are black. The default is 0, none."""

    salt_and_pepper: float = 0.0
    """Expected share of pixels set to white or black, half each, in [0, 1]. The default is 0, none."""

    brightness: float = 0.0
    """Range x of the brightness factor, uniform in [1 - x, 1 + x], as in torchvision's ColorJitter. In [0, 1], default
    0, no change; 0.4 is usual."""

    contrast: float = 0.0
    """Range x of the contrast factor, uniform in [1 - x, 1 + x], as in torchvision's ColorJitter. In [0, 1], default 0,
    no change; 0.4 is usual."""

    saturation: float = 0.0
    """Range x of the saturation factor, uniform in [1 - x, 1 + x], as in torchvision's ColorJitter. In [0, 1], default
    0, no change; 0.4 is usual."""

    hue: float = 0.0
    """Largest shift of the hue, uniform in [-x, x], as a share of the colour circle. In [0, 0.5], default 0, no change;
    0.1 is usual."""

    erase_probability: float = 0.0
    """Probability of erasing a rectangle of 2 to 33 % of the area to grey, in [0, 1] (Zhong et al., arXiv 1708.04896).
    The default is 0, none; torchvision's recipes use 0.1."""

    cutout_px: int = 0
    """Side, in pixels, of a square of mean colour at a random place in the image (DeVries and Taylor, arXiv
    1708.04552). The default is 0, none."""

    auto: AutoName = "none"
    """Automatic augmentation: "none" (the default), "rand" for RandAugment (Cubuk et al., arXiv 1909.13719), "trivial"
    for TrivialAugment (Müller and Hutter, arXiv 2103.10158), "rand-increasing" for timm's RandAugment, or "augmix" for
    AugMix (Hendrycks et al., arXiv 1912.02781), without its consistency loss. For long training."""

    rand_ops: int = 2
    """Number of RandAugment's operations per image, 1 or more; "rand-increasing" does each with a probability of one
    half. Read only with auto="rand" and "rand-increasing"."""

    rand_strength: int = 9
    """Strength of the operations: in [0, 30] with auto="rand", in [0, 10] with "rand-increasing" (ResNet recipes use 6
    and 7) and "augmix" (3 is usual). Not read with other policies."""

    rand_deviation: float = 0.0
    """Standard deviation of the strength with auto="rand-increasing" and "augmix", 0 or more; drawn for each operation,
    and cut to [0, 10]. The default, 0, is a constant strength; 0.5 is usual."""

    mixup_alpha: float = 0.0
    """Parameter of the Beta distribution of MixUp's mixing ratio, 0 or more (Zhang et al., arXiv 1710.09412). The
    default is 0, no MixUp; 0.2 is usual. With cutmix_alpha, each sample gets one of the two, with equal probability."""

    cutmix_alpha: float = 0.0
    """Parameter of the Beta distribution of CutMix's area, 0 or more (Yun et al., arXiv 1905.04899). The default is 0,
    no CutMix; 1.0 is usual."""

    def __post_init__(self) -> None:
        check_finite("augment.", vars(self))
        check_choice("augment.auto", self.auto, get_args(AutoName))
        if self.rand_ops < 1 or not 0 <= self.rand_strength <= 30:
            raise RecipeError(
                f"augment.rand_ops={self.rand_ops} must be 1 or more and "
                f"augment.rand_strength={self.rand_strength} in [0, 30]"
            )
        if self.auto in ("rand-increasing", "augmix") and self.rand_strength > 10:
            raise RecipeError(f"augment.rand_strength={self.rand_strength} must be 10 or less with auto={self.auto}")
        shares = ("flip_probability", "salt_and_pepper", "brightness", "contrast", "saturation", "erase_probability")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"augment.{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.hue <= 0.5:
            raise RecipeError(f"augment.hue={self.hue} must lie in [0, 0.5]")
        for name in ("crop_padding_px", "rotation_degrees", "cutout_px", "rand_deviation", "mixup_alpha",
                     "cutmix_alpha"):  # fmt: skip
            if getattr(self, name) < 0:
                raise RecipeError(f"augment.{name}={getattr(self, name)} must not be negative")
        area = self.resized_crop_area
        if area is not None and not 0 < area[0] <= area[1] <= 1:
            raise RecipeError(f"augment.resized_crop_area={area} must be two rising numbers in (0, 1]")

    @property
    def changes_samples(self) -> bool:
        """Whether any operation changes single images; erasing, cutout and mixing change whole batches."""
        return replace(self, erase_probability=0.0, cutout_px=0, mixup_alpha=0.0, cutmix_alpha=0.0) != Augment()

    @property
    def crops_or_flips(self) -> bool:
        """Whether images are cropped from padded ones, or flipped."""
        return bool(self.crop_padding_px or self.flip_probability)

    @property
    def mixes(self) -> bool:
        """Whether a sample is made of two images (MixUp or CutMix)."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @property
    def jitters(self) -> bool:
        """Whether brightness, contrast, saturation or hue change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)
