"""The recipes that are chosen from: for photographs with and without pretrained weights, and for small images.

Sizes, batches and epochs are filled in by `choose.py`.
"""

from dataclasses import replace

from pipeline.config.augment import Augment
from pipeline.config.choices import Precision, TestViews
from pipeline.config.presets import recipes
from pipeline.config.recipe import Recipe
from pipeline.training.automatic.facts import DataFacts
from pipeline.training.automatic.machine import is_depthwise

PHOTOS, FINE_TUNED, SMALL = "own-photos", "own-photos-fine-tuned", "own-small-images"


def fine_tuned(model: str, size_px: int, facts: DataFacts, on_gpu: bool) -> Recipe:
    """Starts from ImageNet's weights: AdamW, a short warm-up, crops of a third of the image and more.

    Source: our own trials on 200 photographs of five classes of Imagenette (docs/log.md). On CPUs
    depthwise convolutions are faster in float32.
    """
    precision: Precision = "auto" if on_gpu or not is_depthwise(model) else "float32"
    return Recipe(
        name=FINE_TUNED, model=model, image_size_px=size_px, evaluate_resize_px=_resize(size_px), epochs=10,
        global_batch_size=16, optimizer="adamw", learning_rate=3e-4, weight_decay=0.01, schedule="cosine",
        warmup_epochs=1, label_smoothing=0.1, augment=_crops(facts), residency="stream", precision=precision,
        test_views=_views(facts), checkpoint_every_steps=100,
    )  # fmt: skip


def photos_on_cpu(size_px: int, facts: DataFacts) -> Recipe:
    """A small ResNet from scratch: what learns most from few photographs in five minutes of a CPU."""
    return replace(
        recipes["digits"], name=PHOTOS, image_size_px=size_px, evaluate_resize_px=size_px, augment=_crops(facts),
        test_views=_views(facts), residency="stream", pixel_mean=facts.pixel_mean, pixel_std=facts.pixel_std,
        warmup_epochs=1, checkpoint_every_steps=100,
    )  # fmt: skip


def photos(model: str, size_px: int, facts: DataFacts) -> Recipe:
    """A ResNet from scratch, as the recipe imagenette-20."""
    return replace(
        recipes["imagenette-20"], name=PHOTOS, model=model, image_size_px=size_px, evaluate_resize_px=_resize(size_px),
        augment=_crops(facts), test_views=_views(facts), checkpoint_every_steps=100,
    )  # fmt: skip


def small_images(size_px: int, facts: DataFacts, model: str = "fast-resnet") -> Recipe:
    """Images of about 32 or 64 px: the recipe `digits`, normalised by the data's own statistics."""
    flip = 0.0 if facts.grey else 0.5
    return replace(
        recipes["digits"], name=SMALL, model=model, image_size_px=size_px, evaluate_resize_px=size_px,
        augment=Augment(crop_padding_px=2 * size_px // 32, flip_probability=flip), test_views=_views(facts),
        pixel_mean=facts.pixel_mean, pixel_std=_wide(facts.pixel_std), checkpoint_every_steps=100,
    )  # fmt: skip


def many_small_images(facts: DataFacts, on_gpu: bool) -> Recipe:
    """Tens of thousands of images of 32 px: the recipe for CIFAR-10, normalised by the data's own statistics."""
    base = recipes["cifar10-96-unfiltered" if on_gpu else "cifar10"]
    flip = 0.0 if facts.grey else 0.5
    return replace(
        base, name=SMALL, augment=replace(base.augment, flip_probability=flip, flip_alternates=not facts.grey),
        test_views=_views(facts), pixel_mean=facts.pixel_mean, pixel_std=_wide(facts.pixel_std),
    )  # fmt: skip


def _views(facts: DataFacts) -> TestViews:
    return "none" if facts.grey else "flip"


def _crops(facts: DataFacts) -> Augment:
    """Random crops, and flips but for grey images: mirrored characters and scans are others."""
    return Augment(resized_crop_area=(0.35, 1.0), flip_probability=0.0 if facts.grey else 0.5)


def _resize(size_px: int) -> int:
    return round(size_px * 8 / 7)


def _wide(deviations: tuple[float, float, float]) -> tuple[float, float, float]:
    """Returns the deviations, but for images of one colour, which can't be divided by zero."""
    red, green, blue = (max(0.05, value) for value in deviations)
    return red, green, blue
