"""What is done to a batch on the device: erasing, normalising, MixUp and CutMix.

A sample is mixed with its neighbour in the global batch: the first with the second, the third with the fourth, and the
last of an odd number with none. Workers take whole pairs (`Order.pairs`), and the draws depend on (seed, epoch, key)
alone, so a mixed sample is the same for any number of workers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.recipe import Augment
from pipeline.core.keyed_random import Epochs, Keys, Stream, uniform
from pipeline.loader.augment import erase

Ints = npt.NDArray[np.int64]


class Normalise(nn.Module):
    """uint8 [N, 3, S, S] -> float32 of the same shape: (x / 255 - mean) / std, on the device.

    One operation that reads bytes: on a GPU nothing is written in between.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * deviations)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-means / deviations).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Keeps the memory format."""
        return torch.addcmul(self.shift, images.to(self.scale.device, non_blocking=True), self.scale)


@dataclass(frozen=True)
class Mixed:
    """Samples of two images each. images: float32 [N, 3, S, S]; share: float32 [N], of the sample's own image and
    label; partner: int64 [N], the label of the other."""

    images: Tensor
    share: Tensor | None = None
    partner: Tensor | None = None


def on_device(
    images: Tensor,
    labels: Tensor,
    positions: Ints,
    normalise: nn.Module,
    spec: Augment,
    seed: int,
    epoch: Epochs,
    keys: Keys,
) -> Mixed:
    """images: uint8 [N, 3, S, S], labels: int64 [N], both on the device; positions: int64 [N], the samples' places in
    this worker's part of the global batch (some may be missing); keys: uint64 [N].
    """
    if spec.erase_probability:
        images = erase(images, spec.erase_probability, seed, epoch, keys)
    pixels = normalise(images)
    if spec.cutout_px:
        pixels = cut_out(pixels, spec.cutout_px, seed, epoch, keys)
    if not spec.mixes:
        return Mixed(pixels)
    partner = partners(positions)
    draws = uniform(seed, epoch, Stream.MIX, keys, 4)
    size = images.shape[-1]
    share, box = mix_up(spec, draws), cut_mix(spec, draws, size)
    cuts = np.full(len(keys), spec.cutmix_alpha > 0)
    if spec.mixup_alpha and spec.cutmix_alpha:
        cuts = draws[:, 0] < 0.5
    alone = partner == np.arange(len(keys))
    box[~cuts | alone] = 0
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    kept = np.where(cuts, 1 - area / size**2, np.where(alone, 1.0, share))
    weight = np.where(cuts, 1.0, kept)
    device = images.device
    other = torch.from_numpy(partner).to(device)
    share_of = torch.from_numpy(weight).to(device, torch.float32).view(-1, 1, 1, 1)
    inside = torch.from_numpy(_inside(box, size)).to(device)
    # One expression, whatever the sample: what is added up doesn't depend on its company.
    own = torch.where(inside[:, None], 0.0, share_of)
    return Mixed(
        (pixels * own + pixels[other] * (1 - own)).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(kept).to(device, torch.float32),
        labels[other],
    )


def cut_out(pixels: Tensor, side: int, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    """pixels: float [N, 3, S, S], normalised. Returns them with a square of mean colour each, anywhere inside."""
    size = pixels.shape[-1]
    first = (uniform(seed, epoch, Stream.CUTOUT, keys, 2) * (size - side + 1)).astype(np.int64)
    box = torch.from_numpy(_inside(np.concatenate([first, first + side], axis=1), size)).to(pixels.device)
    return pixels.masked_fill(box[:, None], 0.0)


def partners(positions: Ints) -> Ints:
    """Returns int64 [N]: where each sample's neighbour is in the batch; itself where the neighbour is missing."""
    at = {position: index for index, position in enumerate(positions.tolist())}
    return np.array([at.get(position ^ 1, index) for position, index in at.items()], dtype=np.int64)


def mix_up(spec: Augment, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns float64 [N]: shares from Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412). draws: float64 [N, 4]."""
    if not spec.mixup_alpha:
        return np.ones(len(draws))
    return _beta(spec.mixup_alpha, draws[:, 1])


def cut_mix(spec: Augment, draws: npt.NDArray[np.float64], size: int) -> Ints:
    """Returns int64 [N, 4]: top, left, bottom, right of the box that comes from the partner (Yun et al., arXiv
    1905.04899): of area 1 - Beta(alpha, alpha) before it is cut off at the edges. draws: float64 [N, 4].
    """
    if not spec.cutmix_alpha:
        return np.zeros((len(draws), 4), dtype=np.int64)
    half = (0.5 * np.sqrt(1 - _beta(spec.cutmix_alpha, draws[:, 1])) * size).astype(np.int64)
    centre = (draws[:, 2:4] * size).astype(np.int64)
    low, high = np.clip(centre - half[:, None], 0, size), np.clip(centre + half[:, None], 0, size)
    return np.concatenate([low, high], axis=1)


def _beta(alpha: float, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, draws), dtype=np.float64)


def _inside(box: Ints, size: int) -> npt.NDArray[np.bool_]:
    line = np.arange(size)
    rows = (line >= box[:, :1]) & (line < box[:, 2:3])
    columns = (line >= box[:, 1:2]) & (line < box[:, 3:4])
    return rows[:, :, None] & columns[:, None, :]
