"""The recipes that come with the package, by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.config.augment import Augment
from pipeline.config.choices import CIFAR_MEAN, CIFAR_STD, unknown_choice
from pipeline.config.imagenet import IMAGENET_PRESETS
from pipeline.config.recipe import Recipe
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import RecipeError


def cifar10() -> Recipe:
    """Best accuracy on CIFAR-10 in five minutes on 2 CPU cores; a GPU trains all 16 epochs.

    Source: our own search (docs/log.md) around Jordan's speed runs (arXiv 2404.00498): `cifar10-94` with a narrower
    network, smaller batches and two test views. Measured: see the README's results.
    """
    return replace(
        cifar10_94(), name="cifar10", model="airbench-small", epochs=16, fit_seconds=300, global_batch_size=1000,
        accumulate_steps=2, head_rate=0.67 * 1000, bias_rate=0.053 * 1000, test_views="flip", checkpoint_every_steps=50,
    )  # fmt: skip


def cifar10_94() -> Recipe:
    """94 % on CIFAR-10 with the fewest operations: the public record's recipe, 8 epochs, 0.29 PFLOP.

    Source: Jordan's airbench with Muon (arXiv 2404.00498 and its repository's README): 94.01 %, mean of 200 runs, with
    six test views. Its loss is a sum over 2,000 images, ours a mean, so the learning rates and weight decays of the
    parameters outside Muon are converted. Measured: see the README's results.
    """
    return Recipe(
        name="cifar10-94", model="airbench94", image_size_px=32, epochs=8, global_batch_size=2000, optimizer="muon",
        learning_rate=0.24, momentum=0.6, head_rate=0.67 * 2000, bias_rate=0.053 * 2000, rest_momentum=0.85,
        weight_decay=2e-6 / 0.67, bias_weight_decay=2e-6 / 0.053, whitening_bias_epochs=3, schedule="one-cycle",
        label_smoothing=0.2, test_views="flip-and-shift", residency="resident", shuffle_window_row_groups=None,
        augment=Augment(crop_padding_px=2, flip_probability=0.5, flip_alternates=True), pixel_mean=CIFAR_MEAN,
        pixel_std=CIFAR_STD, checkpoint_every_steps=25,
    )  # fmt: skip


def cifar10_95() -> Recipe:
    """95 % on CIFAR-10: a wider network and Nesterov momentum, 15 epochs, 1.4 PFLOP.

    Source: airbench95 of Jordan's repository (KellerJordan/cifar10-airbench, legacy/; arXiv 2404.00498, section 5):
    95.01 %, mean of 200 runs, with six test views. Unlike theirs, an epoch drops no image. Measured: none yet.
    """
    return _nesterov_run(
        cifar10_94(), "cifar10-95", 10.0, 0.0153, model="airbench95", epochs=15, warmup_epochs=0.23 * 15,
        warmup_from=_from_fifth(169), schedule_end=0.07,
    )  # fmt: skip


def cifar10_96() -> Recipe:
    """96 % on CIFAR-10: a residual network on the harder half of each batch, 44 epochs, 3.1 PFLOP.

    Source: airbench96_faster of Jordan's repository (KellerJordan/cifar10-airbench), data filtering by a small proxy:
    96.00 %, mean of 200 runs, with six test views. Theirs are 45 epochs of 48 batches, as many images as 44.2 of ours.
    Measured: none yet.
    """
    return _nesterov_run(
        cifar10_96_unfiltered(), "cifar10-96", 9.0, 0.012, images=512, model="airbench96-slim", epochs=44,
        warmup_epochs=4.4, warmup_from=_from_fifth(216), whitening_bias_epochs=0.0,
        proxy_filter=ProxyFilter("airbench-proxy", keep=0.5, update_every_steps=4),
    )  # fmt: skip


def cifar10_96_unfiltered() -> Recipe:
    """96 % on CIFAR-10, on all images of each batch: an earlier, wider version, 31 epochs, 5.7 PFLOP.

    Source: Jordan's airbench96 (arXiv 2404.00498), of which 96.01 % is published, mean of 400 runs. Measured: none yet.
    """
    return _nesterov_run(
        cifar10_94(), "cifar10-96-unfiltered", 9.0, 0.012, model="airbench96", epochs=31, warmup_epochs=3.1,
        warmup_from=0.2, augment=Augment(crop_padding_px=4, flip_probability=0.5, flip_alternates=True, cutout_px=12),
        whitening_bias_rate=0.0,
    )  # fmt: skip


def _nesterov_run(base: Recipe, name: str, rate: float, decay: float, images: int = 1024, **changes: Any) -> Recipe:
    """Returns a speed run with Nesterov momentum in batches of 1,024, and Look-ahead.

    rate, decay: learning rate and weight decay as their files have them: of a sum over 1,024 images, and for a step
    that momentum makes 7.7 times as long. A decay of biases takes as much from them in a step as from the rest. images:
    of a step that are trained on.
    """
    step = 1 + 1 / (1 - 0.85)  # length of a Nesterov step for a constant gradient of 1
    rate, decay = rate * (images / 1024) / step, decay / step
    plain = replace(
        base, name=name, global_batch_size=1024, optimizer="nesterov", learning_rate=rate, momentum=0.85, head_rate=0.0,
        bias_rate=64 * rate, weight_decay=decay / rate, bias_weight_decay=decay / (64 * rate), whitening_bias_rate=rate,
        look_ahead_every_steps=5, checkpoint_every_steps=100,
    )  # fmt: skip
    return replace(plain, **changes)


def _from_fifth(warmup_steps: int) -> float:
    """Returns the `warmup_from` of a warm-up that has a fifth of the peak rate in its first step, as theirs has."""
    return 0.2 - 0.8 / warmup_steps


def seed_cnn() -> Recipe:
    """TensorFlow's CNN tutorial on CIFAR-10: ten epochs of Adam, no augmentation. Published: "over 70 %"."""
    return Recipe(
        name="seed-cnn", model="seed-cnn", image_size_px=32, epochs=10, global_batch_size=64, optimizer="adam",
        learning_rate=1e-3, schedule="constant", residency="resident", shuffle_window_row_groups=None,
        pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0), checkpoint_every_steps=200, precision="float32",
    )  # fmt: skip


def digits() -> Recipe:
    """scikit-learn's digits, for machines without CIFAR-10: a small ResNet; no flips, since a mirrored 2 is no 2."""
    return Recipe(
        name="digits", model="fast-resnet", image_size_px=32, epochs=16, global_batch_size=128, optimizer="muon",
        learning_rate=0.24, head_rate=2.0, bias_rate=0.2, momentum=0.6, weight_decay=5e-4, schedule="one-cycle",
        label_smoothing=0.1, augment=Augment(crop_padding_px=2), residency="resident", shuffle_window_row_groups=None,
        pixel_mean=(0.3, 0.3, 0.3), pixel_std=(0.35, 0.35, 0.35), checkpoint_every_steps=50,
    )  # fmt: skip


def _cifar_classic(name: str, model: str, **changes: Any) -> Recipe:
    """A classic network for images of 32 px, trained as in He et al. (arXiv 1512.03385, section 4.2); slow on a CPU."""
    base = Recipe(
        name=name, model=model, image_size_px=32, epochs=30, global_batch_size=128, optimizer="momentum",
        learning_rate=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=1, residency="resident",
        augment=Augment(crop_padding_px=4, flip_probability=0.5), shuffle_window_row_groups=None,
        pixel_mean=CIFAR_MEAN, pixel_std=CIFAR_STD, checkpoint_every_steps=100,
    )  # fmt: skip
    return replace(base, **changes)


_PRESETS: dict[str, Callable[[], Recipe]] = {
    "cifar10": cifar10,
    "cifar10-94": cifar10_94,
    "cifar10-95": cifar10_95,
    "cifar10-96": cifar10_96,
    "cifar10-96-unfiltered": cifar10_96_unfiltered,
    "seed-cnn": seed_cnn,
    "digits": digits,
    "cifar10-alexnet": partial(_cifar_classic, "cifar10-alexnet", "alexnet", learning_rate=0.02),
    "cifar10-vgg11": partial(_cifar_classic, "cifar10-vgg11", "vgg11_bn", learning_rate=0.05),
    "cifar10-resnet18": partial(_cifar_classic, "cifar10-resnet18", "resnet18"),
    "cifar10-densenet121": partial(_cifar_classic, "cifar10-densenet121", "densenet121"),
    **IMAGENET_PRESETS,
}


class UnknownRecipeError(RecipeError, KeyError):
    """Raised for a name that no recipe has; the message names the nearest ones."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class Recipes(Mapping[str, Recipe]):
    """The recipes by name: `recipes["cifar10"]` returns a Recipe, iteration yields the names.

    Raises UnknownRecipeError, a RecipeError and a KeyError, for an unknown name.
    """

    def __getitem__(self, name: str) -> Recipe:
        if name not in _PRESETS:
            raise UnknownRecipeError(unknown_choice("recipe", name, tuple(_PRESETS)))
        return _PRESETS[name]()

    def __contains__(self, name: object) -> bool:
        return name in _PRESETS

    def __iter__(self) -> Iterator[str]:
        return iter(_PRESETS)

    def __len__(self) -> int:
        return len(_PRESETS)

    def claim(self, name: str) -> str:
        """Returns the first sentences of a recipe's docstring: what it is for, and its source or accuracy."""
        made = _PRESETS[name]
        doc = (made.func if isinstance(made, partial) else made).__doc__ or ""
        return " ".join(doc.partition("\n\n")[0].split())


recipes = Recipes()
