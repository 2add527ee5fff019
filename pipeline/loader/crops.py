"""Geometry of random crops and flips, in numpy: Ray tasks start faster without importing torch."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.augment import Augment
from pipeline.core.keyed_random import Epochs, Keys, Stream, uniform

Draws = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


def crop_boxes(heights: Ints, widths: Ints, spec: Augment, draws: Draws) -> Ints:
    """Returns int32 [N, 4]: top, left, height, width of random resized crops, distributed as torchvision's.

    heights, widths: integers [N], of the images. draws: float64 [N, 40] in [0, 1): area, log aspect ratio and top for
    each of ten tries, then left for each of the ten.
    """
    assert spec.resized_crop_area is not None
    low, high = spec.resized_crop_area
    log_low, log_high = (math.log(ratio) for ratio in spec.resized_crop_ratio)
    heights, widths = heights.astype(np.int64), widths.astype(np.int64)
    boxes = _central_boxes(heights, widths, spec.resized_crop_ratio)
    todo = np.arange(len(heights))
    for attempt in range(10):
        height, width, draw = heights[todo], widths[todo], draws[todo]
        area = height * width * (low + (high - low) * draw[:, 3 * attempt])
        ratio = np.exp(log_low + (log_high - log_low) * draw[:, 3 * attempt + 1])
        w, h = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        top = (draw[:, 3 * attempt + 2] * (height - h + 1)).astype(np.int64)
        left = (draw[:, 30 + attempt] * (width - w + 1)).astype(np.int64)
        boxes[todo[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        todo = todo[~fits]
        if not len(todo):
            break
    return boxes.astype(np.int32)


def _central_boxes(heights: Ints, widths: Ints, ratios: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Returns torchvision's fallback when no try fits: the centre, cut to the nearest allowed aspect ratio."""
    ratio = widths / heights
    h = np.where(ratio < ratios[0], np.rint(widths / ratios[0]), heights).astype(np.int64)
    w = np.where(ratio > ratios[1], np.rint(heights * ratios[1]), widths).astype(np.int64)
    h, w = np.maximum(h, 1), np.maximum(w, 1)  # torchvision fails there: 1x3000 and a ratio of 0.3, say
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)


def flips(spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: whether each sample is mirrored."""
    # One draw for the whole run; then every second epoch shows the other side.
    draw_epoch = 0 if spec.flip_alternates else epoch
    mirrored = uniform(seed, draw_epoch, Stream.FLIP, keys)[:, 0] < spec.flip_probability
    return np.asarray(mirrored ^ (np.asarray(epoch) % 2 == 1)) if spec.flip_alternates else mirrored


def padded_crops(size: int, spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> tuple[Index, Index]:
    """Returns from_y and from_x, int64 [N, size]: the source row and column of each pixel of a padded random crop.

    The image is padded by `crop_padding_px` by reflection, cropped back to `size` and maybe flipped.
    """
    shift, line = crop_shifts(spec, seed, epoch, keys), np.arange(size)
    flip = flips(spec, seed, epoch, keys)
    y = shift[:, :1] + line
    x = shift[:, 1:] + np.where(flip[:, None], size - 1 - line, line)
    return _reflect(y, size), _reflect(x, size)


def crop_shifts(spec: Augment, seed: int, epoch: Epochs, keys: Keys) -> Index:
    """Returns int64 [N, 2]: how far down and right of the image a padded crop lies, -padding to padding."""
    padding = spec.crop_padding_px
    return (uniform(seed, epoch, Stream.CROP, keys, 2) * (2 * padding + 1)).astype(np.int64) - padding


def _reflect(index: Index, size: int) -> Index:
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)
