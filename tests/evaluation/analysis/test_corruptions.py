"""Corruptions: equal to their formulas, independent of the other images in a batch, and counted in an evaluation."""

import colorsys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import key_hash
from pipeline.evaluation.analysis.corruptions import CORRUPTIONS, CorruptionTally, add_tallies, corrupted
from pipeline.loader.batch import Batch

KEYS = key_hash([f"image {n}" for n in range(40)])


def pictures(count: int = 40, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_does_not_depend_on_the_other_images(name: str) -> None:
    images = pictures()
    together, alone = corrupted(images, name, 3, KEYS), corrupted(images[7:8], name, 3, KEYS[7:8])
    assert torch.equal(together[7:8], alone)
    assert together.dtype == torch.uint8
    assert not torch.equal(together, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name: str) -> None:
    smooth = torch.nn.functional.interpolate(pictures(20, 8).float(), size=32, mode="bicubic").clamp(0, 255)
    images = smooth.to(torch.uint8)
    change = [
        float((corrupted(images, name, severity, KEYS[:20]).float() - images).abs().mean()) for severity in range(1, 6)
    ]
    assert change == sorted(change)
    assert change[0] > 0


def test_gaussian_noise_has_the_stated_deviation() -> None:
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    noise = corrupted(grey, "gaussian-noise", 3, KEYS).double() - 128
    assert float(noise.std()) == pytest.approx(255 * 0.08, rel=0.01)
    assert abs(float(noise.mean())) < 0.2


def test_salt_and_pepper_hits_the_stated_share_by_halves() -> None:
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    hit = corrupted(grey, "salt-and-pepper", 5, KEYS)
    assert float((hit != 128).double().mean()) == pytest.approx(0.07, rel=0.03)
    assert float((hit == 0).double().sum() / (hit == 255).double().sum()) == pytest.approx(1, abs=0.06)


def test_brightness_is_added_to_v_of_hsv() -> None:
    images = pictures(2, 8)
    brighter = corrupted(images, "brightness", 4, KEYS[:2])
    for before, after in zip(
        images.permute(0, 2, 3, 1).reshape(-1, 3), brighter.permute(0, 2, 3, 1).reshape(-1, 3), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before.double() / 255).tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
        np.testing.assert_allclose(after.double() / 255, expected, atol=0.003)


def test_blur_is_a_gaussian() -> None:
    image = pictures(1, 64)
    ours = corrupted(image, "gaussian-blur", 5, KEYS[:1])[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(image[0].permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(1.0)))
    inner = np.abs(ours.astype(int) - theirs)[8:-8, 8:-8]
    assert inner.mean() < 3  # PIL's is three box blurs


def test_large_images_have_imagenets_strengths() -> None:
    assert CORRUPTIONS["jpeg"].strength(5, 32) == 40
    assert CORRUPTIONS["jpeg"].strength(5, 224) == 7


def test_an_unknown_name_or_severity_is_an_error() -> None:
    with pytest.raises(RecipeError, match="did you mean gaussian-noise"):
        corrupted(pictures(1), "gaussian-nois", 1, KEYS[:1])
    with pytest.raises(RecipeError, match="severity=6 must be 1 to 5"):
        corrupted(pictures(1), "jpeg", 6, KEYS[:1])


class _Brightest(nn.Module):
    """Predicts class 1 for an image whose mean is above 128."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.float().mean(dim=(1, 2, 3))
        return torch.stack([128 - mean, mean - 128], dim=1)


def test_correct_predictions_are_counted_and_the_counts_of_workers_add_up() -> None:
    images, rows = pictures(40), np.arange(40)
    labels = (images.float().mean(dim=(1, 2, 3)) > 128).long()

    def batches(chosen: np.ndarray) -> Iterator[Batch]:
        yield Batch(0, chosen, images[chosen], labels[chosen], KEYS[chosen], np.arange(len(chosen)), chosen[:0])

    whole, parts = CorruptionTally((1, 5), 40), [CorruptionTally((1, 5), 40), CorruptionTally((1, 5), 40)]
    assert len(list(whole.count(batches(rows), _Brightest(), nn.Identity()))) == 1
    for tally, chosen in zip(parts, (rows[:13], rows[13:]), strict=True):
        list(tally.count(batches(chosen), _Brightest(), nn.Identity()))
    assert add_tallies(parts) == whole
    assert whole.rows == 40
    assert whole.correct["brightness", 5] == int(labels.sum())  # all are bright then
    assert whole.correct["none", 0] == 40
    assert len(whole.correct) == 2 * len(CORRUPTIONS) + 1
    some = CorruptionTally((1, 5), 15)
    list(some.count(batches(rows), _Brightest(), nn.Identity()))
    assert some.rows == some.correct["none", 0] == 15
