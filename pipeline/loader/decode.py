"""Decodes JPEGs to a uint8 batch: crop, antialiased resize and flip in one step, by the kernel or by libraries.

- "kernel": native/decode.c, which decodes the rows and columns of the crop alone: photographs by its own decoder, other
  images, and all images of evaluation, by libjpeg-turbo.
- "libjpeg": the kernel without its own decoder.
- "simplejpeg": decodes in full with simplejpeg, crops and resizes with torchvision; where the kernel can't be compiled.

All three stay within MAX_ERROR of torchvision's own decode and antialiased resize (tests/loader/test_decode.py). They
don't give the same pixels, though, so a run uses one of them on all nodes and records which.
"""

import ctypes
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import ClusterError, DatasetError
from pipeline.dataset import image_codec
from pipeline.dataset.image_codec import Buffer
from pipeline.dataset.native.library import KernelUnavailableError
from pipeline.loader.native.kernel import load_kernel

MAX_ERROR = 0.6  # mean absolute difference to torchvision, of 255, over many images; 3.0 for any one
DecoderName = Literal["kernel", "libjpeg", "simplejpeg"]
_OK, _DAMAGED, _UNSUPPORTED, _OTHER_SIZE, _NO_MEMORY, _BAD_BOX = range(6)
_REMEDY = "install gcc and libjpeg-dev on every node, or set IMAGE_DECODER=simplejpeg for the job"

Ints = npt.NDArray[np.int32]
Batch = npt.NDArray[np.uint8]
_MOST_RESIZED_PIXELS = 25_000_000  # of a whole image in memory after its resize; more only for sides like 1 to 400
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CropGeometry:
    """Which part of each of N images becomes a sample of S x S pixels. All arrays are int32, in pixels.

    sizes: [N, 2], height and width of the stored image.
    boxes: [N, 4], top, left, height and width of the crop.
    full: [N, 2], height and width that the crop is resized to.
    window: [N, 2], top and left of the S x S pixels of the resized crop that become the sample.
    flip: [N], 1 to mirror the sample.
    scaled: whether the kernel may decode large crops at 1/2, 1/4 or 1/8, which is faster and blurs a little
    differently; evaluation decodes in full.
    """

    size_px: int
    sizes: Ints
    boxes: Ints
    full: Ints
    window: Ints
    flip: Ints
    scaled: bool = True

    @staticmethod
    def resized_crops(size_px: int, sizes: Ints, boxes: Ints, flip: Ints) -> "CropGeometry":
        """Returns the geometry of training: each box is resized to S x S."""
        full, window = np.full((len(sizes), 2), size_px, np.int32), np.zeros((len(sizes), 2), np.int32)
        return CropGeometry(size_px, sizes, boxes, full, window, flip)

    @staticmethod
    def centre_crops(size_px: int, resize_px: int, sizes: Ints) -> "CropGeometry":
        """Returns the geometry of evaluation: the shorter side is resized to `resize_px`, then the centre is taken.

        Sizes and offsets are rounded as torchvision's Resize and CenterCrop do.
        """
        height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
        short = np.minimum(height, width)
        full = np.stack([resize_px * height // short, resize_px * width // short], axis=1)
        half = (full - size_px) / 2.0
        window = np.rint(half).astype(np.int32)  # rounds halves to the even number, as Python's round does
        boxes = np.stack([np.zeros_like(height), np.zeros_like(height), height, width], axis=1).astype(np.int32)
        flip = np.zeros(len(sizes), np.int32)
        return CropGeometry(size_px, sizes, boxes, full.astype(np.int32), window, flip, scaled=False)

    def table(self) -> Ints:
        """Returns int32 [N, 11], one row an image: struct `view` of native/decode.c."""
        parts = [self.sizes, self.boxes, self.full, self.window, self.flip[:, None]]
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.int32)


def decode_batch(
    encoded: Sequence[Buffer],
    geometry: CropGeometry,
    place: Callable[[int], str],
    decoder: DecoderName,
    corrupt: set[int] | None = None,
    out: Batch | None = None,
) -> Batch:
    """Returns uint8 [N, S, S, 3], which is `out`, contiguous, where that is given.

    place: returns the name of the n-th image for messages. corrupt: a set that receives the numbers of images that
    can't be decoded; those are black, and images already in it are skipped. Without it, DatasetError is raised.
    """
    if out is None:
        out = np.empty((len(encoded), geometry.size_px, geometry.size_px, 3), dtype=np.uint8)
    status = np.full(len(encoded), _UNSUPPORTED, dtype=np.int32)
    if decoder != "simplejpeg":
        status = _run_kernel(encoded, geometry, decoder == "libjpeg", out)
    for index in np.flatnonzero(status).tolist():
        try:
            if corrupt is None or index not in corrupt:
                # What the kernel's libjpeg can't decode the library may, which ingest has decoded it with.
                if status[index] not in (_UNSUPPORTED, _DAMAGED):
                    raise _CorruptError(_REASONS[status[index]])
                out[index] = _by_library(encoded[index], geometry, index)
        except _CorruptError as error:
            if corrupt is None or status[index] in (_NO_MEMORY, _BAD_BOX):
                raise DatasetError(f"{place(index)}: {error}; ingest the data set again") from error
            corrupt.add(index)
    for index in corrupt or ():
        out[index] = 0
    return out


class _CorruptError(Exception):
    """Raised when an image cannot be decoded."""


_REASONS = {
    _OTHER_SIZE: "the image has another size than its row says",
    _NO_MEMORY: "no memory to decode it",
    _BAD_BOX: "a crop that doesn't lie in the image",
}


# --- the kernel --------------------------------------------------------------------------------------------------


def best_decoder() -> DecoderName:
    """Returns the decoder in the environment variable IMAGE_DECODER, or else the fastest one that this machine has.

    Logs a warning, once per process, if the kernel can't be compiled. Raises ClusterError if IMAGE_DECODER names no
    decoder, or one that this machine lacks.
    """
    asked = os.environ.get("IMAGE_DECODER")
    for name in get_args(DecoderName):
        if asked == name:
            check_decoder(name)
            return name
    if asked:
        raise ClusterError(f"IMAGE_DECODER={asked} is no decoder; there are {', '.join(get_args(DecoderName))}")
    return "kernel" if cached_kernel() else "simplejpeg"


def check_decoder(decoder: DecoderName) -> None:
    """Raises ClusterError if this machine lacks the decoder that the run started with."""
    if decoder != "simplejpeg" and not cached_kernel():
        raise ClusterError(
            f"{os.uname().nodename}: has no C compiler or no libjpeg-turbo headers, but the run decodes with the "
            f"kernel; {_REMEDY}"
        )


@lru_cache(maxsize=1)
def cached_kernel() -> Any:
    """Returns the loaded kernel, or None, after a warning, where it can't be compiled."""
    try:
        return load_kernel()
    except KernelUnavailableError as error:
        # 1.55 ms an image instead of 0.86: ImageNet originals, crops to 224 px, one core of docs/log.md's machine M.
        logger.warning(
            "%s: the native JPEG decoder can't be compiled (%s). Images are decoded in full by simplejpeg instead, "
            "which takes about twice the CPU time; %s",
            os.uname().nodename,
            error,
            _REMEDY,
        )
        return None


def _run_kernel(encoded: Sequence[Buffer], geometry: CropGeometry, by_libjpeg: bool, out: Batch) -> Ints:
    kernel = cached_kernel()
    assert kernel is not None
    arrays = [np.frombuffer(image, dtype=np.uint8) for image in encoded]
    pointers = np.array([array.ctypes.data for array in arrays], dtype=np.uint64)
    lengths = np.array([len(array) for array in arrays], dtype=np.uint64)
    status = np.zeros(len(encoded), dtype=np.int32)
    table = geometry.table()
    addresses = [ctypes.c_void_p(each.ctypes.data) for each in (pointers, lengths, table)]
    kernel.decode_batch(
        len(encoded),
        *addresses,
        geometry.size_px,
        int(geometry.scaled),
        int(by_libjpeg),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_void_p(status.ctypes.data),
    )
    return status


# --- libraries -------------------------------------------------------------------------------------------------


def _by_library(data: Buffer, geometry: CropGeometry, index: int) -> Batch:
    try:
        pixels = image_codec.decode(data)
    except image_codec.BadImageError as error:
        raise _CorruptError(f"can't be decoded ({error})") from error
    if pixels.shape[:2] != tuple(geometry.sizes[index].tolist()):
        raise _CorruptError(_REASONS[_OTHER_SIZE])
    return resize_and_crop(pixels, geometry, index)


def resize_and_crop(pixels: Batch, geometry: CropGeometry, index: int) -> Batch:
    """Returns uint8 [S, S, 3]: the crop of line `index` of the geometry, by torchvision. pixels: uint8 [H, W, 3]."""
    top, left, height, width = geometry.boxes[index].tolist()
    y, x = geometry.window[index].tolist()
    if math.prod(geometry.full[index].tolist()) > _MOST_RESIZED_PIXELS:
        return _resized_window(pixels, geometry, index)
    full = _resized(pixels[top : top + height, left : left + width], geometry.full[index].tolist())
    shown = full[y : y + geometry.size_px, x : x + geometry.size_px]
    return shown[:, ::-1] if geometry.flip[index] else shown


def _resized(pixels: Batch, shape: list[int]) -> Batch:
    if list(pixels.shape[:2]) == shape:  # small images: torchvision's import takes longer than to decode thousands
        return pixels
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    box = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return F.resize(box, shape, interpolation=InterpolationMode.BILINEAR, antialias=True).permute(1, 2, 0).numpy()


def _resized_window(pixels: Batch, geometry: CropGeometry, index: int) -> Batch:
    """Returns what `resize_and_crop` does, by PIL, which computes only the window of the resized image.

    For images of extreme shape: 3800x1 pixels, of which the shorter side becomes 256, would have 249 million.
    """
    top, left, height, width = geometry.boxes[index].tolist()
    (full_height, full_width), (y, x) = geometry.full[index].tolist(), geometry.window[index].tolist()
    down, across, size = height / full_height, width / full_width, geometry.size_px
    box = (x * across, y * down, (x + size) * across, (y + size) * down)
    image = Image.fromarray(pixels[top : top + height, left : left + width])
    shown = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return shown[:, ::-1] if geometry.flip[index] else shown
