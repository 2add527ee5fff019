"""timm's RandAugment ("rand-increasing") and AugMix beside timm's own, operation by operation and image by image."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.config.augment import Augment
from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Stream, uniform
from pipeline.loader import auto_augment
from pipeline.loader.augment import augment_batch

timm_policies: Any = pytest.importorskip("timm.data.auto_augment")

SIZE = 48
# Ours; timm's; whether only the interior is compared, because PIL mixes the fill into other pixels at the edge.
PAIRS = {
    "auto-contrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "smooth-rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize-at": "SolarizeIncreasing", "solarize-add": "SolarizeAdd",
    "color": "ColorIncreasing", "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing", "smooth-shear-x": "ShearX", "smooth-shear-y": "ShearY",
    "smooth-translate-x": "TranslateXRel", "smooth-translate-y": "TranslateYRel",
}  # fmt: skip
EXACT = {"equalize", "invert", "posterize", "solarize-at", "solarize-add"}


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """A smooth image: linear interpolation of noise would differ by the last bit of a coordinate."""
    line = torch.linspace(0, 3, SIZE)
    waves = torch.stack([torch.outer((line * k).sin(), (line + k).cos()) for k in (1, 2, 3)])
    return (127 + 120 * waves).round().to(torch.uint8)


def as_pil(image: Tensor) -> Any:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def theirs(name: str, level: float, negative: bool, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Returns timm's operation on PIL images, at a level and with a sign."""
    monkeypatch.setattr(random, "random", lambda: 1.0 if negative else 0.0)
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR, "translate_pct": 0.45}
    operation: Callable[[Any], Any] = timm_policies.AugmentOp(PAIRS[name], prob=1.0, magnitude=level, hparams=hparams)
    return operation


def test_the_operations_are_timms() -> None:
    assert tuple(PAIRS[name] for name in auto_augment.INCREASING) == tuple(timm_policies._RAND_INCREASING_TRANSFORMS)
    assert {PAIRS[name] for name in auto_augment._AUGMIX} == set(timm_policies._AUGMIX_TRANSFORMS)


@pytest.mark.parametrize("level", [0.0, 3.3, 7.0, 10.0])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", auto_augment.INCREASING)
def test_each_operation_does_what_timms_does(
    picture: Tensor, name: str, negative: bool, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "posterize" and level == 10:
        assert auto_augment.increasing_strength(name, level, SIZE, negative) == 1  # PIL refuses timm's 0
        return
    expected = as_tensor(theirs(name, level, negative, monkeypatch)(as_pil(picture)))
    ours = auto_augment.apply(picture, name, auto_augment.increasing_strength(name, level, SIZE, negative))
    assert ours.dtype == torch.uint8
    difference = (ours.int() - expected.int()).abs().amax(dim=0)
    if name in EXACT:
        assert not difference.any()
    else:  # roundings differ; beside the border of the fill by more
        assert (difference > 2).float().mean() < (0.06 if name.startswith("smooth") else 1e-9), difference.max()
        assert difference.float().median() <= 1


def test_strengths_are_drawn_as_timm_draws_them() -> None:
    """Half of the operations are left out; the others' strength is Gaussian, cut to [0, 10]."""
    draws = uniform(0, 0, Stream.AUTO, np.arange(20_000, dtype=np.uint64), 4)
    (one,) = zip(*(auto_augment.increasing_choices(1, 9, 0.5, each, SIZE) for each in draws), strict=True)
    counts = {name: sum(name == other for other, _ in one) for name in ("identity", *auto_augment.INCREASING)}
    assert abs(counts.pop("identity") - 10_000) < 300
    assert all(abs(count - 10_000 / 15) < 120 for count in counts.values()), counts
    levels = np.array([abs(value) / 30 * 10 for name, value in one if name == "smooth-rotate"])
    assert levels.max() == 10.0
    assert abs((levels == 10.0).mean() - 0.0228) < 0.02  # two deviations above 9
    assert abs(np.median(levels) - 9) < 0.1
    assert abs(np.mean([value < 0 for name, value in one if name == "smooth-rotate"]) - 0.5) < 0.08
    constant = [auto_augment.increasing_choices(2, 7, 0.0, each, SIZE) for each in draws[:50].repeat(2, axis=1)]
    assert {abs(value) for pair in constant for name, value in pair if name == "smooth-rotate"} == {21.0}


def test_augmix_mixes_as_timm_does(picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's class, given the chains, weights and share that ours has drawn."""
    keys = np.arange(30, dtype=np.uint64)
    for draws in uniform(0, 0, Stream.AUTO, keys, auto_augment.AUGMIX_DRAWS):
        ours = auto_augment.augmix_choices(3, 0.5, draws, SIZE)
        assert sum(ours.weights) == pytest.approx(1)
        assert all(1 <= len(chain) <= 3 for chain in ours.chains)

        def operation(name: str, value: float) -> Callable[[Any], Any]:
            return lambda image: as_pil(auto_augment.apply(as_tensor(image), name, value))

        chains = iter([[operation(*each) for each in chain] for chain in ours.chains])
        reference = timm_policies.AugMixAugment(ops=[], alpha=1.0, width=3, depth=-1)
        weights, share = list(ours.weights), ours.share
        monkeypatch.setattr(np.random, "dirichlet", lambda _, weights=weights: np.array(weights))
        monkeypatch.setattr(np.random, "beta", lambda *_, share=share: share)
        monkeypatch.setattr(np.random, "choice", lambda *_, chains=chains, **__: next(chains))
        expected = as_tensor(reference(as_pil(picture)))
        assert (ours.apply(picture).int() - expected.int()).abs().max() <= 1
    depths = [
        len(chain)
        for draws in uniform(0, 1, Stream.AUTO, np.arange(2000, dtype=np.uint64), auto_augment.AUGMIX_DRAWS)
        for chain in auto_augment.augmix_choices(3, 0.0, draws, SIZE).chains
    ]
    assert all(abs(depths.count(depth) - 2000) < 150 for depth in (1, 2, 3))


@pytest.mark.parametrize("auto", ["rand-increasing", "augmix"])
def test_an_image_is_augmented_alike_in_any_batch(picture: Tensor, auto: Any) -> None:
    spec = Augment(auto=auto, rand_strength=5, rand_deviation=0.5)
    images = picture.repeat(12, 1, 1, 1)
    keys = np.arange(12, dtype=np.uint64)
    whole = augment_batch(images, spec, 3, 1, keys)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment_batch(images[5:7], spec, 3, 1, keys[5:7]), whole[5:7])
    assert not torch.equal(augment_batch(images, spec, 3, 2, keys), whole)
    assert len({each.numpy().tobytes() for each in whole}) > 8


def test_levels_above_ten_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"augment\.rand_strength=15 must be 10 or less with auto=augmix"):
        Augment(auto="augmix", rand_strength=15)
    with pytest.raises(RecipeError, match=r"augment\.rand_deviation=-1 must not be negative"):
        Augment(auto="augmix", rand_strength=3, rand_deviation=-1)
