"""The recipes for ImageNet and photographs like its, by name: classic, large batches, FFCV's, torchvision's, timm's."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.config.augment import Augment
from pipeline.config.recipe import Recipe, SizeRamp


def _imagenet(name: str, model: str, **changes: Any) -> Recipe:
    """Classic networks for ImageNet-like data: crops of 8 to 100 % and flips (arXiv 1409.4842, 1512.03385)."""
    base = Recipe(
        name=name, model=model, image_size_px=224, evaluate_resize_px=256, epochs=90, global_batch_size=256,
        optimizer="nesterov", learning_rate=0.1, weight_decay=1e-4, schedule="cosine", warmup_epochs=5,
        augment=Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5), residency="stream",
    )  # fmt: skip
    return replace(base, **changes)


def _large_batch(size: int) -> Recipe:
    """ResNet-50 in larger batches, for more GPUs: the recipe resnet50 with rates in proportion (arXiv 1706.02677).

    Source: Goyal et al., sections 2.1 and 2.2 ("linear scaling", "gradual warm-up"): 0.1 for 256 images, reached over 5
    epochs from 0.1. Published: 76.4 % top-1 with 256 images and 76.3 % with 8,192, there with rates that fall in steps.
    Measured: none yet.
    """
    scale = size / 256
    return _imagenet(
        f"resnet50-batch{size}", "resnet50", global_batch_size=size, learning_rate=0.1 * scale, warmup_from=1 / scale
    )


def resnet50_batch32768() -> Recipe:
    """ResNet-50 in batches of 32,768 by LARS, for hundreds of GPUs: NVIDIA's published settings of MLPerf 0.7.

    Source: github.com/mlcommons/training_results_v0.7, NVIDIA/benchmarks/resnet/implementations/mxnet,
    config_DGX2_multi_32x16x65.sh, for 33,280 images a step: 75.9 % in 56 of 58 epochs. LARS: You et al., arXiv
    1708.03888. Measured: none yet.
    """
    return _imagenet(
        "resnet50-batch32768", "resnet50", epochs=58, global_batch_size=32768, optimizer="lars", learning_rate=21.2,
        momentum=0.94, weight_decay=2.5e-5, warmup_epochs=16, schedule="parabola", label_smoothing=0.1,
    )  # fmt: skip


def _ffcv(model: str, epochs: int, first_ramp: int, last_ramp: int) -> Recipe:
    """ResNets on ImageNet by FFCV's published settings (Leclerc et al., arXiv 2306.12517, repository ffcv-imagenet).

    Published top-1: ResNet-18 66.9 % in 16 epochs and 72.4 % in 88; ResNet-50 73.8 % and 78.4 %. Batches of 1,024; the
    learning rate rises for two epochs and falls linearly to zero; 160 to 192 px, evaluated at 256 px with mirror
    images. Measured: none yet.
    """
    name = f"{model}-{epochs}"
    rate, decay = (1.7, 1e-4) if model == "resnet50" else (0.5, 5e-5)
    return _imagenet(
        name, model, image_size_px=192, size_ramp=SizeRamp(160, first_ramp, last_ramp), epochs=epochs,
        evaluate_size_px=256, evaluate_resize_px=293, test_views="flip", blur_pool=True, optimizer="momentum",
        global_batch_size=1024, learning_rate=rate, weight_decay=decay, warmup_epochs=2, schedule="one-cycle",
        label_smoothing=0.1, augment=Augment(resized_crop_area=(0.08, 1.0), flip_probability=0.5),
    )  # fmt: skip


def resnet50_v2() -> Recipe:
    """ResNet-50 by torchvision's second recipe: 80.86 % published (blog post "How to Train State-Of-The-Art Models").

    600 epochs at 176 px in batches of 1,024, four versions of an image in a batch, TrivialAugment, MixUp or CutMix,
    erasing, an average of the weights, evaluated at 224 px. The average's decay is 0.9989, which is their 0.99998
    scaled by batch size and epochs. Unlike theirs, the last layer's bias has no weight decay. Measured: none yet.
    """
    augment = Augment(
        resized_crop_area=(0.08, 1.0), flip_probability=0.5, auto="trivial", erase_probability=0.1, mixup_alpha=0.2,
        cutmix_alpha=1.0,
    )  # fmt: skip
    return _imagenet(
        "resnet50-v2", "resnet50", image_size_px=176, evaluate_size_px=224, evaluate_resize_px=232, epochs=600,
        global_batch_size=1024, optimizer="momentum", learning_rate=0.5, weight_decay=2e-5, warmup_epochs=5,
        warmup_from=0.01, schedule="cosine", label_smoothing=0.1, ema_decay=0.9989, ema_every_steps=32, repeats=4,
        augment=augment,
    )  # fmt: skip


def _strikes_back(name: str, **changes: Any) -> Recipe:
    """ResNet-50 by timm's published procedures: A1 and A2 of "ResNet strikes back", and A3 (arXiv 2110.00476, table 2).

    Published top-1, at 224 px: A1 80.4 % in 600 epochs, A2 79.8 % in 300, A3 78.1 % in 100 at 160 px. LAMB, batches of
    2,048, binary cross-entropy, MixUp and CutMix, timm's RandAugment; the learning rate changes with each epoch, from
    1e-4 and to 1e-6, and LAMB's gradients are cut at a norm of 1, as is timm's default. Unlike theirs: 2,049 images a
    step where an image comes in three versions; each pair of images is mixed in its own way, theirs a whole batch;
    images are interpolated linearly instead of cubically. A threshold of targets isn't in the paper: 0.2 for A2 and A3
    is in public records of timm's commands; A1 has smoothed targets. Measured: none yet.
    """
    rate = changes.get("learning_rate", 5e-3)
    augment = Augment(
        resized_crop_area=(0.08, 1.0), flip_probability=0.5, auto="rand-increasing", rand_strength=7,
        rand_deviation=0.5, mixup_alpha=0.1, cutmix_alpha=1.0,
    )  # fmt: skip
    base = _imagenet(
        name, "resnet50", evaluate_size_px=224, evaluate_resize_px=235, epochs=300, global_batch_size=2049, repeats=3,
        optimizer="lamb", learning_rate=rate, weight_decay=0.02, schedule_by="epoch", warmup_from=1e-4 / rate,
        schedule_end=1e-6 / rate, clip_norm=1.0, loss="binary-cross-entropy", target_threshold=0.2,
        stochastic_depth=0.05, zero_init_residual=True, augment=augment,
    )  # fmt: skip
    return replace(base, **changes)


def resnet50_a1() -> Recipe:
    """ResNet-50 by timm's procedure A1, 600 epochs: 80.4 % published at 224 px (arXiv 2110.00476).

    Settings, and what differs from theirs: `_strikes_back`. Measured: none yet.
    """
    base = _strikes_back("resnet50-a1", epochs=600, weight_decay=0.01, label_smoothing=0.1, target_threshold=0.0)
    return replace(base, augment=replace(base.augment, mixup_alpha=0.2))


def resnet50_a2() -> Recipe:
    """ResNet-50 by timm's procedure A2, 300 epochs: 79.8 % published at 224 px (arXiv 2110.00476).

    Settings, and what differs from theirs: `_strikes_back`. Measured: none yet.
    """
    return _strikes_back("resnet50-a2")


def resnet50_a3() -> Recipe:
    """ResNet-50 by timm's procedure A3, 100 epochs at 160 px: 78.1 % published at 224 px (arXiv 2110.00476).

    Settings, and what differs from theirs: `_strikes_back`. Measured: none yet.
    """
    base = _strikes_back(
        "resnet50-a3", image_size_px=160, epochs=100, global_batch_size=2048, repeats=1, learning_rate=8e-3,
        stochastic_depth=0.0,
    )  # fmt: skip
    return replace(base, augment=replace(base.augment, rand_strength=6))


def _imagenette(epochs: int) -> Recipe:
    """A ResNet-18 with blur pooling on Imagenette, ten easy classes of ImageNet, at 128 px.

    Published by the leaderboard, with other networks: 87.4 % (5 epochs), 91.6 % (20), 93.6 % (80). Measured: 46.50 % in
    5 epochs on 1,200 of the 9,469 training images (README); on all of them none yet.
    """
    return _imagenet(
        f"imagenette-{epochs}", "resnet18", image_size_px=128, evaluate_resize_px=146, epochs=epochs, blur_pool=True,
        global_batch_size=64, optimizer="nesterov", learning_rate=0.05, weight_decay=5e-4, warmup_epochs=epochs / 10,
        schedule="one-cycle", label_smoothing=0.1, test_views="flip",
        augment=Augment(resized_crop_area=(0.35, 1.0), flip_probability=0.5), checkpoint_every_steps=50,
    )  # fmt: skip


def _imagenet_smoke() -> Recipe:
    """One epoch of a ResNet-18 at 128 px: a smoke test of a cluster, its storage and a data set."""
    return _imagenet(
        "resnet18-smoke", "resnet18", image_size_px=128, evaluate_resize_px=144, epochs=1, global_batch_size=64,
        optimizer="adamw", learning_rate=1e-3, warmup_epochs=0.25, checkpoint_every_steps=50,
    )  # fmt: skip


IMAGENET_PRESETS: dict[str, Callable[[], Recipe]] = {
    "resnet18-smoke": _imagenet_smoke,
    "imagenette-5": partial(_imagenette, 5),
    "imagenette-20": partial(_imagenette, 20),
    "imagenette-80": partial(_imagenette, 80),
    "resnet18-16": partial(_ffcv, "resnet18", 16, 11, 13),
    "resnet18-32": partial(_ffcv, "resnet18", 32, 23, 27),
    "resnet18-88": partial(_ffcv, "resnet18", 88, 65, 76),
    "resnet50-16": partial(_ffcv, "resnet50", 16, 11, 13),
    "resnet50-32": partial(_ffcv, "resnet50", 32, 23, 27),
    "resnet50-88": partial(_ffcv, "resnet50", 88, 65, 76),
    "resnet50-v2": resnet50_v2,
    "resnet50-a1": resnet50_a1,
    "resnet50-a2": resnet50_a2,
    "resnet50-a3": resnet50_a3,
    "resnet18": partial(_imagenet, "resnet18", "resnet18"),
    "resnet50": partial(_imagenet, "resnet50", "resnet50"),
    "resnet50-batch1024": partial(_large_batch, 1024),
    "resnet50-batch2048": partial(_large_batch, 2048),
    "resnet50-batch4096": partial(_large_batch, 4096),
    "resnet50-batch32768": resnet50_batch32768,
    "alexnet": partial(_imagenet, "alexnet", "alexnet", learning_rate=0.01, weight_decay=5e-4),
    "vgg16": partial(_imagenet, "vgg16", "vgg16_bn", learning_rate=0.02, weight_decay=5e-4),
    "densenet121": partial(_imagenet, "densenet121", "densenet121"),
}
"""Functions that make the recipes, by name."""
