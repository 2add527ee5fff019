"""Augmentation of images, from random numbers that depend on (seed, epoch, row key) alone, whichever worker does it.

Streamed images are cropped and flipped while they are decoded (`crop_boxes`, `flips`, then `decode.decode_batch`).
`augment_batch` does the other operations, and for resident images all of them, on batches of one size and on any
device. Both work on uint8 and use the same random numbers.

torchvision is imported by the operations that need it: it takes over a second, in every process.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.config.augment import Augment
from pipeline.core.keyed_random import Epochs, Keys, Stream, bits, uniform
from pipeline.loader.crops import Draws, crop_boxes, crop_shifts, flips
from pipeline.loader.device.send import send


def augment_batch(images: Tensor, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    """Returns the images augmented, uint8 [N, 3, S, S].

    images: uint8 [N, 3, S, S], any memory format. keys: uint64 [N], hashes of the rows' keys. Erasing, cutout and
    mixing are left to `pipeline.models.batch_transforms`.

    Resized crops, rotation and jitter go image by image, some ten operations each: torchvision takes one box, angle or
    factor for a whole batch, and formulas of our own for many would round otherwise. A stream leaves them to its tasks,
    on CPUs; of resident images on a GPU each is a launch for each image.
    """
    if spec.resized_crop_area is not None:
        images = _resized_crops(images, spec, uniform(seed, epoch, Stream.RESIZED_CROP, keys, 40))
    if spec.crops_or_flips:
        images = _crop_and_flip(images, spec, seed, epoch, keys)
    if spec.auto != "none":
        images = _auto_augment(images, spec, seed, epoch, keys)
    if spec.rotation_degrees:
        angles = (2 * uniform(seed, epoch, Stream.ROTATION, keys)[:, 0] - 1) * spec.rotation_degrees
        images = torch.stack([_rotate(image, angle) for image, angle in zip(images, angles, strict=True)])
    if spec.jitters:
        draws = uniform(seed, epoch, Stream.JITTER, keys, 4)
        images = torch.stack([_jitter(image, spec, row) for image, row in zip(images, draws, strict=True)])
    if spec.salt_and_pepper:
        images = _salt_and_pepper(images, spec.salt_and_pepper, seed, epoch, keys)
    return images


def _resized_crops(images: Tensor, spec: Augment, draws: Draws) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    antialiased = {"interpolation": InterpolationMode.BILINEAR, "antialias": True}
    size = images.shape[-1]
    sizes = np.full(len(images), size, dtype=np.int64)
    boxes = crop_boxes(sizes, sizes, spec, draws).tolist()
    crops = [
        F.resized_crop(image, top, left, height, width, [size, size], **antialiased)
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)


def _crop_and_flip(images: Tensor, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    rows = torch.arange(len(images), device=images.device)
    return gather_crops(images, rows, *crop_places(images, spec, seed, epoch, keys))


def crop_places(images: Tensor, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> tuple[Tensor, Tensor]:
    """Returns `crops.padded_crops`, int64 [N, S] each, computed on the images' device: three numbers a row go there."""
    size, device = images.shape[-1], images.device
    mirrored = flips(spec, seed, epoch, keys)[:, None]
    sent = send(np.concatenate([crop_shifts(spec, seed, epoch, keys), mirrored], axis=1), device)
    line = torch.arange(size, device=device)
    columns = torch.where(sent[:, 2:] > 0, line.flip(0), line)
    return _reflected(sent[:, :1] + line, size), _reflected(sent[:, 1:2] + columns, size)


def _reflected(index: Tensor, size: int) -> Tensor:
    period = 2 * (size - 1)
    index = index.abs() % period
    return torch.minimum(index, period - index)


def gather_crops(images: Tensor, rows: Tensor, from_y: Tensor, from_x: Tensor) -> Tensor:
    """Returns crops, uint8 [N, 3, S, S], channels_last, of chosen images, as one gather: each pixel is copied once.

    images: uint8 [M, 3, S, S]. rows: int64 [N], of the images. from_y, from_x: of `crop_places`.
    """
    pixels = images.permute(0, 2, 3, 1)[rows[:, None, None], from_y[:, :, None], from_x[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def _auto_augment(images: Tensor, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    """Applies an automatic policy: on a GPU to images of the same operation together, else, and AugMix, one by one.

    One by one an image's bytes depend on nothing else in its batch, whatever the CPU and the size.
    """
    from pipeline.loader import auto_augment as policies

    size, strength, deviation = images.shape[-1], spec.rand_strength, spec.rand_deviation
    num_draws = {"trivial": 3, "rand": 2 * spec.rand_ops, "rand-increasing": 4 * spec.rand_ops}
    lines = uniform(seed, epoch, Stream.AUTO, keys, num_draws.get(spec.auto, policies.AUGMIX_DRAWS))
    if spec.auto == "augmix":
        mixes = [policies.augmix_choices(strength, deviation, draws, size) for draws in lines]
        augmented = torch.stack([mix.apply(image) for mix, image in zip(mixes, images, strict=True)])
        return augmented.contiguous(memory_format=torch.channels_last)
    if spec.auto == "trivial":
        choices = [policies.trivial_choice(draws) for draws in lines]
    elif spec.auto == "rand":
        choices = [policies.rand_choices(spec.rand_ops, strength, draws, size) for draws in lines]
    else:
        choices = [policies.increasing_choices(spec.rand_ops, strength, deviation, draws, size) for draws in lines]
    if images.is_cuda:
        augmented = policies.apply_alike(images, choices)
    else:
        augmented = torch.stack([policies.apply_in_turn(*each) for each in zip(images, choices, strict=True)])
    return augmented.contiguous(memory_format=torch.channels_last)


def _rotate(image: Tensor, degrees: float) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    return F.rotate(image, float(degrees), interpolation=InterpolationMode.BILINEAR)


def _jitter(image: Tensor, spec: Augment, draws: Draws) -> Tensor:
    from torchvision.transforms.v2 import functional as F

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


def _salt_and_pepper(images: Tensor, share: float, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    size = images.shape[-1]
    draws = uniform(seed, epoch, Stream.SALT_AND_PEPPER, keys, size * size).reshape(-1, 1, size, size)
    noise = send(draws, images.device)
    images = torch.where(noise < share / 2, torch.zeros_like(images), images)
    return torch.where(noise >= 1 - share / 2, torch.full_like(images, 255), images)


def erase(images: Tensor, probability: float, seed: int, epoch: Epochs, keys: Keys) -> Tensor:
    """Returns the images, uint8 [N, 3, S, S], a share `probability` of them with a grey rectangle.

    The rectangle has 2 to 33 % of the area and an aspect ratio from 0.3 to 3.3 (Zhong et al., arXiv 1708.04896).
    """
    draws = uniform(seed, epoch, Stream.ERASE, keys, 5)
    size = images.shape[-1]
    area = size * size * (0.02 + (0.33 - 0.02) * draws[:, 1])
    ratio = np.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draws[:, 2])
    height = np.minimum(np.round(np.sqrt(area / ratio)), size - 1).astype(np.int64)
    width = np.minimum(np.round(np.sqrt(area * ratio)), size - 1).astype(np.int64)
    top = (draws[:, 3] * (size - height + 1)).astype(np.int64)
    left = (draws[:, 4] * (size - width + 1)).astype(np.int64)
    boxes = np.stack([top, left, top + height, left + width], axis=1)
    boxes[draws[:, 0] >= probability] = 0
    # By where, which keeps the memory format; masked_fill with a smaller mask doesn't.
    return torch.where(inside(send(boxes, images.device), size)[:, None], 127, images)


def inside(boxes: Tensor, size: int) -> Tensor:
    """Returns bool [N, S, S], on the boxes' device: whether a pixel lies in the sample's box.

    boxes: [N, 4], whole numbers: top, left, bottom, right, the last two outside.
    """
    line = torch.arange(size, device=boxes.device)
    first, last = boxes[:, :2, None], boxes[:, 2:, None]
    rows, columns = ((line >= first) & (line < last)).unbind(1)
    return rows[:, :, None] & columns[:, None, :]


def dropout_seed(seed: int, global_step: int, rank: int) -> int:
    """Returns the seed of torch's generator for one step of one rank, so that dropout needs no saved state."""
    key = np.array([rank], dtype=np.uint64)
    # Halved, because torch takes a signed 64-bit seed.
    return int(bits(seed, global_step, Stream.DROPOUT, key)[0, 0] >> np.uint64(1))
