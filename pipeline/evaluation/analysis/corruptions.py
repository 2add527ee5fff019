"""Robustness: accuracy under noise, blur, brightness and compression.

The corruptions are those of Hendrycks and Dietterich (arXiv 1903.12261), with the strengths of their published code for
ImageNet-C and, for images of at most 64 pixels, for CIFAR-10-C. As there, images are corrupted at the size that the
model sees. Noise depends on (key of the image, kind of noise) alone, so the counts are the same for any number of
workers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from pipeline.config.choices import check_choice
from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Keys, Stream, uniform
from pipeline.dataset.image_codec import decode, encode_jpeg
from pipeline.loader.batch import Batch

SMALL_PX = 64  # up to this size the strengths of CIFAR-10-C are used
_SEED = 0


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    meaning: for people. unit: of the strengths. small, large: strengths of severities 1 to 5, for images of at most and
    of more than SMALL_PX pixels. apply: maps uint8 [N, 3, S, S], a strength and keys [N] to corrupted images.
    """

    meaning: str
    unit: str
    small: tuple[float, ...]
    large: tuple[float, ...]
    apply: Callable[[Tensor, float, Keys], Tensor]

    def strength(self, severity: int, size_px: int) -> float:
        """Returns the strength of a severity, 1 to 5, for images of `size_px` pixels."""
        return (self.small if size_px <= SMALL_PX else self.large)[severity - 1]


def _gaussian_noise(images: Tensor, deviation: float, keys: Keys) -> Tensor:
    draws = uniform(_SEED, 0, Stream.NOISE, keys, images[0].numel()).reshape(images.shape)
    noise = torch.from_numpy(ndtri(draws + 2.0**-54)).to(images.device, torch.float32)
    return (images + 255 * deviation * noise).round().clamp(0, 255).to(torch.uint8)


def _salt_and_pepper(images: Tensor, share: float, keys: Keys) -> Tensor:
    draws = uniform(_SEED, 0, Stream.IMPULSES, keys, images[0].numel()).reshape(images.shape)
    noise = torch.from_numpy(draws).to(images.device)
    darkened = torch.where(noise < share / 2, torch.zeros_like(images), images)
    return torch.where(noise >= 1 - share / 2, torch.full_like(images, 255), darkened)


def _gaussian_blur(images: Tensor, deviation: float, keys: Keys) -> Tensor:
    from torchvision.transforms.v2 import functional as F  # here: it takes over a second

    reach = min(2 * round(4 * deviation) + 1, images.shape[-1] // 2 * 2 - 1)
    return F.gaussian_blur(images, [reach, reach], [deviation, deviation])


def _brightness(images: Tensor, added: float, keys: Keys) -> Tensor:
    """Adds to V of HSV. With hue and saturation unchanged, that is a scaling of the pixel."""
    pixels = images.float() / 255
    value = pixels.amax(dim=1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    scaled = torch.where(value > 0, pixels * brighter / value.clamp(min=1e-6), brighter)
    return (255 * scaled).round().clamp(0, 255).to(torch.uint8)


def _jpeg(images: Tensor, quality: float, keys: Keys) -> Tensor:
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    again = np.stack([decode(encode_jpeg(image, int(quality))) for image in pixels])
    return torch.from_numpy(again).permute(0, 3, 1, 2).to(images.device)


CORRUPTIONS = {
    "gaussian-noise": Corruption(
        "normal noise", "standard deviation, of 1", (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38),
        _gaussian_noise,
    ),
    "salt-and-pepper": Corruption(
        "values set to black or white", "share", (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27),
        _salt_and_pepper,
    ),
    "gaussian-blur": Corruption(
        "blur", "standard deviation, px", (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), _gaussian_blur
    ),
    "brightness": Corruption(
        "brighter", "added to V of HSV, of 1", (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), _brightness
    ),
    "jpeg": Corruption("compressed again", "JPEG quality", (80, 65, 58, 50, 40), (25, 18, 15, 10, 7), _jpeg),
}  # fmt: skip


def corrupted(images: Tensor, name: str, severity: int, keys: Keys) -> Tensor:
    """Returns the corrupted images, uint8 [N, 3, S, S].

    images: uint8 [N, 3, S, S]; name: of CORRUPTIONS; severity: 1 to 5; keys: uint64 [N], hashes of the rows' keys.
    Raises RecipeError for an unknown name or severity.
    """
    check_choice("corruption", name, tuple(CORRUPTIONS))
    if severity not in range(1, 6):
        raise RecipeError(f"severity={severity} must be 1 to 5")
    kind = CORRUPTIONS[name]
    return kind.apply(images, kind.strength(severity, images.shape[-1]), keys).contiguous(
        memory_format=torch.channels_last
    )


def robustness_means(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns (accuracy without corruption, mean accuracy over all corruptions and severities).

    lines: the content of `robustness.json`.
    """
    accuracy = {(line["corruption"], line["severity"]): line["correct"] / line["rows"] for line in lines}
    clean = accuracy.pop(("none", 0))
    return clean, sum(accuracy.values()) / len(accuracy)


@dataclass
class CorruptionTally:
    """Counts of correct predictions under each corruption, taken from the batches of an evaluation as they pass.

    severities: of every corruption. end_row: only rows before it are counted; ingest has shuffled the rows, so they are
    a random sample. rows: number of rows counted so far. correct: {(corruption, severity): rows classified correctly},
    with ("none", 0) for the images as they are. Only one view of each image is predicted.
    """

    severities: Sequence[int]
    end_row: int
    rows: int = 0
    correct: dict[tuple[str, int], int] = field(default_factory=dict)

    def count(self, batches: Iterable[Batch], net: nn.Module, normalise: nn.Module) -> Iterator[Batch]:
        """Yields the batches, each after it has been counted."""
        cases = [("none", 0), *((name, severity) for name in CORRUPTIONS for severity in self.severities)]
        for batch in batches:
            counted = batch.rows < self.end_row
            if counted.any():
                images, labels, keys = batch.images[counted], batch.labels[counted], batch.keys[counted]
                for name, severity in cases:
                    with torch.inference_mode():
                        shown = corrupted(images, name, severity, keys) if severity else images
                        correct = int((net(normalise(shown)).argmax(dim=1) == labels).sum())
                    self.correct[name, severity] = self.correct.get((name, severity), 0) + correct
                self.rows += int(counted.sum())
            yield batch

    def lines(self, size_px: int) -> list[dict[str, Any]]:
        """Returns the content of `robustness.json`: corruption, severity, strength, correct and rows of each case.

        size_px: of the images, which decides the strengths.
        """
        return [
            {
                "corruption": name,
                "severity": severity,
                "strength": CORRUPTIONS[name].strength(severity, size_px) if severity else 0.0,
                "correct": correct,
                "rows": self.rows,
            }
            for (name, severity), correct in self.correct.items()
        ]


def add_tallies(tallies: Sequence[CorruptionTally]) -> CorruptionTally:
    """Returns the sum of the tallies of all workers."""
    total = CorruptionTally(tallies[0].severities, tallies[0].end_row)
    for tally in tallies:
        total.rows += tally.rows
        for case, correct in tally.correct.items():
            total.correct[case] = total.correct.get(case, 0) + correct
    return total
