"""Augmentation whose draws depend on (seed, epoch, row key) alone, so it is the same wherever it is made.

Two ways to the same pixels: `augment_image` for one decoded image of any size (in Ray Data tasks), and
`augment_batch` for a batch of equal-sized images (resident data, on the device). Both work on uint8. For images
that need no resizing they agree to the bit (tests/test_augment.py).
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.draws import Keys, Stream, bits, uniform
from pipeline.recipes import Augment

Draws = npt.NDArray[np.float64]

_ANTIALIASED = {"interpolation": InterpolationMode.BILINEAR, "antialias": True}


def crop_box(height: int, width: int, spec: Augment, draws: Draws) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of a random resized crop, distributed as torchvision's RandomResizedCrop.

    draws: float64 [40] in [0, 1): for each of ten tries area, log aspect ratio and top, then ten times left.
    """
    assert spec.resized_crop_area is not None
    low, high = spec.resized_crop_area
    log_low, log_high = (math.log(ratio) for ratio in spec.resized_crop_ratio)
    for attempt in range(10):
        area = height * width * (low + (high - low) * draws[3 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * draws[3 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws[3 * attempt + 2] * (height - h + 1))
            return top, int(draws[30 + attempt] * (width - w + 1)), h, w
    in_ratio = width / height
    w, h = width, height
    if in_ratio < spec.resized_crop_ratio[0]:
        h = round(w / spec.resized_crop_ratio[0])
    elif in_ratio > spec.resized_crop_ratio[1]:
        w = round(h * spec.resized_crop_ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def evaluation_view(image: Tensor, size_px: int, resize_px: int) -> Tensor:
    """image: uint8 [3, H, W]. Returns uint8 [3, S, S]: shorter side to `resize_px`, then the centre crop."""
    height, width = image.shape[-2:]
    if (height, width) == (size_px, size_px) == (resize_px, resize_px):
        return image
    return F.center_crop(F.resize(image, [resize_px], **_ANTIALIASED), [size_px, size_px])


def augment_image(image: Tensor, spec: Augment, size_px: int, seed: int, epoch: int, key: Keys) -> Tensor:
    """image: uint8 [3, H, W]; key: uint64 [1]. Returns uint8 [3, S, S]."""
    if spec.resized_crop_area is not None:
        draws = uniform(seed, epoch, Stream.RESIZED_CROP, key, 40)[0]
        top, left, height, width = crop_box(image.shape[-2], image.shape[-1], spec, draws)
        image = F.resized_crop(image, top, left, height, width, [size_px, size_px], **_ANTIALIASED)
    else:
        image = evaluation_view(image, size_px, size_px)
    return augment_batch(image[None], replace(spec, resized_crop_area=None), seed, epoch, key)[0]


def augment_batch(images: Tensor, spec: Augment, seed: int, epoch: int, keys: Keys) -> Tensor:
    """images: uint8 [N, 3, S, S], any memory format; keys: uint64 [N]. Returns the same shape and dtype."""
    if spec.resized_crop_area is not None:
        images = _resized_crops(images, spec, uniform(seed, epoch, Stream.RESIZED_CROP, keys, 40))
    if spec.crop_padding_px or spec.flip_probability:
        images = _crop_and_flip(images, spec, seed, epoch, keys)
    if spec.rotation_degrees:
        angles = (2 * uniform(seed, epoch, Stream.ROTATION, keys)[:, 0] - 1) * spec.rotation_degrees
        images = torch.stack([_rotate(image, angle) for image, angle in zip(images, angles, strict=True)])
    if spec.jitters:
        draws = uniform(seed, epoch, Stream.JITTER, keys, 4)
        images = torch.stack([_jitter(image, spec, row) for image, row in zip(images, draws, strict=True)])
    if spec.salt_and_pepper:
        images = _salt_and_pepper(images, spec.salt_and_pepper, seed, epoch, keys)
    if spec.erase_probability:
        images = _erase(images, spec.erase_probability, uniform(seed, epoch, Stream.ERASE, keys, 5))
    return images


def _resized_crops(images: Tensor, spec: Augment, draws: Draws) -> Tensor:
    size = images.shape[-1]
    boxes = [crop_box(size, size, spec, row) for row in draws]
    crops = [
        F.resized_crop(image, top, left, height, width, [size, size], **_ANTIALIASED)
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)


def _crop_and_flip(images: Tensor, spec: Augment, seed: int, epoch: int, keys: Keys) -> Tensor:
    """Crop after reflect-padding and flip as one gather: pixel (y, x) is read from where it came from."""
    size, padding = images.shape[-1], spec.crop_padding_px
    shift = (uniform(seed, epoch, Stream.CROP, keys, 2) * (2 * padding + 1)).astype(np.int64) - padding
    flip = uniform(seed, epoch, Stream.FLIP, keys)[:, 0] < spec.flip_probability
    line = np.arange(size)
    y = shift[:, :1] + line
    x = shift[:, 1:] + np.where(flip[:, None], size - 1 - line, line)
    from_y, from_x = (torch.from_numpy(_reflect(index, size)).to(images.device) for index in (y, x))
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)[rows, from_y[:, :, None], from_x[:, None, :]]  # one copy a pixel
    return pixels.permute(0, 3, 1, 2)


def _reflect(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


def _rotate(image: Tensor, degrees: float) -> Tensor:
    return F.rotate(image, float(degrees), interpolation=InterpolationMode.BILINEAR)


def _jitter(image: Tensor, spec: Augment, draws: Draws) -> Tensor:
    factors = 1 + (2 * draws - 1) * (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    if spec.brightness:
        image = F.adjust_brightness(image, float(factors[0]))
    if spec.contrast:
        image = F.adjust_contrast(image, float(factors[1]))
    if spec.saturation:
        image = F.adjust_saturation(image, float(factors[2]))
    if spec.hue:
        image = F.adjust_hue(image, float(factors[3] - 1))
    return image


def _salt_and_pepper(images: Tensor, share: float, seed: int, epoch: int, keys: Keys) -> Tensor:
    size = images.shape[-1]
    draws = uniform(seed, epoch, Stream.SALT_AND_PEPPER, keys, size * size).reshape(-1, 1, size, size)
    noise = torch.from_numpy(draws).to(images.device)
    images = torch.where(noise < share / 2, torch.zeros_like(images), images)
    return torch.where(noise >= 1 - share / 2, torch.full_like(images, 255), images)


def _erase(images: Tensor, probability: float, draws: Draws) -> Tensor:
    size = images.shape[-1]
    area = size * size * (0.02 + (0.33 - 0.02) * draws[:, 1])
    ratio = np.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draws[:, 2])
    height = np.minimum(np.round(np.sqrt(area / ratio)), size - 1).astype(np.int64)
    width = np.minimum(np.round(np.sqrt(area * ratio)), size - 1).astype(np.int64)
    top = (draws[:, 3] * (size - height + 1)).astype(np.int64)
    left = (draws[:, 4] * (size - width + 1)).astype(np.int64)
    line = np.arange(size)
    inside_y = (line >= top[:, None]) & (line < (top + height)[:, None])
    inside_x = (line >= left[:, None]) & (line < (left + width)[:, None])
    mask = inside_y[:, :, None] & inside_x[:, None, :] & (draws[:, 0] < probability)[:, None, None]
    erased = torch.from_numpy(mask[:, None]).to(images.device)
    return torch.where(erased, torch.full_like(images, 127), images)


def dropout_seed(seed: int, global_step: int, rank: int) -> int:
    """Returns the seed of torch's generator for one step of one rank, so that dropout needs no saved state."""
    key = np.array([rank], dtype=np.uint64)
    return int(bits(seed, global_step, Stream.DROPOUT, key)[0, 0] >> np.uint64(1))
