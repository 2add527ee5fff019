"""Transforms of a whole batch on the device: random erasing, normalisation, cutout, MixUp and CutMix.

MixUp and CutMix mix a sample with its neighbour in the global batch: the first with the second, the third with the
fourth; the last of an odd number stays as it is. Each worker gets whole pairs (`Order.pairs`) and the random numbers
depend on (seed, epoch, key) alone, so a mixed sample is the same for any number of workers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.augment import Augment
from pipeline.core.keyed_random import Epochs, Keys, Stream, uniform
from pipeline.loader.augment import erase, inside
from pipeline.loader.batch import Batch
from pipeline.loader.device.send import send

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TransformedBatch:
    """What the network and the loss receive.

    images: float32 [N, 3, S, S]. Where samples are mixed of two images, weight is float32 [N], the weight of a sample's
    own label, and partner_labels is int64 [N], the labels with the rest of the weight; otherwise both are None.
    """

    images: Tensor
    weight: Tensor | None = None
    partner_labels: Tensor | None = None


def transform_batch(batch: Batch, normalise: nn.Module, augment: Augment, seed: int) -> TransformedBatch:
    """Returns the batch, whose images and labels are on the device, as the network takes it.

    normalise: converts uint8 images [N, 3, S, S] to float32. seed: of the run.
    """
    images = batch.images
    if augment.erase_probability:
        images = erase(images, augment.erase_probability, seed, batch.epochs, batch.keys)
    pixels = normalise(images)
    if augment.cutout_px:
        pixels = cut_out(pixels, augment.cutout_px, seed, batch.epochs, batch.keys)
    if not augment.mixes:
        return TransformedBatch(pixels)
    return _mix(pixels, batch, augment, uniform(seed, batch.epochs, Stream.MIX, batch.keys, 4))


def _mix(pixels: Tensor, batch: Batch, augment: Augment, draws: npt.NDArray[np.float64]) -> TransformedBatch:
    """pixels: float [N, 3, S, S]; draws: float64 [N, 4], the first of which chooses between MixUp and CutMix."""
    size, device = pixels.shape[-1], pixels.device
    partner = partners(batch.positions)
    mix_share, box = mix_up(augment, draws), cut_mix(augment, draws, size)
    is_cut_mix = np.full(len(draws), augment.cutmix_alpha > 0)
    if augment.mixup_alpha and augment.cutmix_alpha:
        is_cut_mix = draws[:, 0] < 0.5
    alone = partner == np.arange(len(draws))
    box[~is_cut_mix | alone] = 0
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    label_weight = np.where(is_cut_mix, 1 - area / size**2, np.where(alone, 1.0, mix_share))
    pixel_weight = np.where(is_cut_mix, 1.0, label_weight)
    # One copy to the device for all of it; whole numbers are exact in float64.
    sent = send(np.column_stack([box, partner, pixel_weight, label_weight]), device)
    weights, other = sent[:, 5:].float(), sent[:, 4].long()
    # The same expression for both kinds of sample: rounding must not depend on the other samples of the batch.
    own = torch.where(inside(sent[:, :4], size)[:, None], 0.0, weights[:, 0].view(-1, 1, 1, 1))
    return TransformedBatch(
        (pixels * own + pixels[other] * (1 - own)).contiguous(memory_format=torch.channels_last),
        weights[:, 1],
        batch.labels[other],
    )


def cut_out(pixels: Tensor, side_px: int, seed: int, epochs: Epochs, keys: Keys) -> Tensor:
    """pixels: float [N, 3, S, S], normalised. Returns them with a square of mean colour in each image.

    side_px: of the square, which lies anywhere inside the image (DeVries and Taylor, arXiv 1708.04552, let it overlap
    the edge). keys: uint64 [N].
    """
    size = pixels.shape[-1]
    first = (uniform(seed, epochs, Stream.CUTOUT, keys, 2) * (size - side_px + 1)).astype(np.int64)
    boxes = send(np.concatenate([first, first + side_px], axis=1), pixels.device)
    return torch.where(inside(boxes, size)[:, None], 0.0, pixels)


def partners(positions: Ints) -> Ints:
    """Returns int64 [N]: the index of each sample's partner in this batch, or its own where the partner is missing.

    positions: int64 [N], ascending, the samples' places in this worker's part of the global batch. Places 2k and
    2k + 1 are partners; corrupt images leave gaps.
    """
    own, wanted = np.arange(len(positions), dtype=np.int64), positions ^ 1
    found = np.minimum(np.searchsorted(positions, wanted), len(positions) - 1)
    return np.where(positions[found] == wanted, found, own)


def mix_up(augment: Augment, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns float64 [N]: each sample's share of its own image, from Beta(alpha, alpha) (Zhang et al., 1710.09412).

    draws: float64 [N, 4], uniform in [0, 1).
    """
    if not augment.mixup_alpha:
        return np.ones(len(draws))
    return _beta(augment.mixup_alpha, draws[:, 1])


def cut_mix(augment: Augment, draws: npt.NDArray[np.float64], size: int) -> Ints:
    """Returns int64 [N, 4]: top, left, bottom, right of the box that is pasted from the partner.

    Its area is 1 - Beta(alpha, alpha) of the image before it is clipped to the edges (Yun et al., arXiv 1905.04899).
    draws: float64 [N, 4], uniform in [0, 1). size: side of the image in pixels.
    """
    if not augment.cutmix_alpha:
        return np.zeros((len(draws), 4), dtype=np.int64)
    half = (0.5 * np.sqrt(1 - _beta(augment.cutmix_alpha, draws[:, 1])) * size).astype(np.int64)
    centre = (draws[:, 2:4] * size).astype(np.int64)
    low, high = np.clip(centre - half[:, None], 0, size), np.clip(centre + half[:, None], 0, size)
    return np.concatenate([low, high], axis=1)


def _beta(alpha: float, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # By inverting the distribution: exactly one uniform number a sample, where rejection takes any number of them.
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, draws), dtype=np.float64)
