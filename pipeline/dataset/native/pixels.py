"""Decodes JPEGs and computes facts of pixels in native code, to the bit what libjpeg-turbo, PIL and hashlib give.

What it can't do, the caller leaves to those: rare and damaged JPEGs, and everything on a machine without a C compiler.
"""

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.native.library import KernelUnavailableError, load_library

SOURCE = Path(__file__).parent / "pixels.c"
SQUARE_PX = 32
_NO_MEMORY, _WITH_DIGEST = 0, 1
_Thumbnail, _Digest = ctypes.c_char * (SQUARE_PX * SQUARE_PX // 4), ctypes.c_char * 32

Buffer = bytes | memoryview
Pixels = npt.NDArray[np.uint8]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeFacts:
    """Facts of the pixels of one image."""

    sha256: str | None  # hex, over "HEIGHTxWIDTH:" and the RGB bytes; None where the CPU has no instructions for it
    histogram: npt.NDArray[np.int64]  # [768]: counts of the values 0 to 255 in R, then G, then B
    grey: npt.NDArray[np.float64]  # [32, 32]: see `pixel_facts.grey_square`
    thumbnail: bytes  # 16 x 16 grey values: the means of two by two of them


@lru_cache(maxsize=1)
def cached_library() -> Any:
    """Returns the compiled library, or None, after a warning, where it can't be compiled."""
    try:
        library = load_library(SOURCE)
    except KernelUnavailableError as error:
        # 3.34 ms a row of ImageNet's originals instead of 2.25: docs/benchmarks.md, "CPU time of an image".
        logger.warning(
            "%s: the native code for pixels can't be compiled (%s). An ingest decodes and looks at images by libraries "
            "instead, which gives the same data set and takes about half more CPU time; install gcc on every node",
            os.uname().nodename,
            error,
        )
        return None
    library.decode_jpeg.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    library.pixel_facts.argtypes = [
        ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p,
        ctypes.c_char_p,
    ]  # fmt: skip
    return library


def decode_ordinary_jpeg(data: Buffer, height: int, width: int) -> Pixels | None:
    """Returns uint8 [H, W, 3], RGB, of a whole baseline JPEG in YCbCr; None for what must be left to libjpeg-turbo.

    height, width: as its header says. Where libjpeg-turbo is faster, on CPUs without AVX2, everything is left to it.
    """
    library = cached_library()
    if library is None or not library.is_fast():
        return None
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    encoded = np.frombuffer(data, dtype=np.uint8)
    decoded = library.decode_jpeg(encoded.ctypes.data, len(encoded), height, width, pixels.ctypes.data)
    return pixels if decoded else None


def native_facts(pixels: Pixels) -> NativeFacts | None:
    """Returns the facts of uint8 [H, W, 3], RGB; None without native code. Raises MemoryError."""
    library = cached_library()
    if library is None:
        return None
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    histogram, grey = np.empty(768, dtype=np.int64), np.empty((SQUARE_PX, SQUARE_PX))
    thumbnail, digest = _Thumbnail(), _Digest()
    result = library.pixel_facts(
        pixels.ctypes.data,
        height,
        width,
        f"{height}x{width}:".encode(),
        histogram.ctypes.data,
        grey.ctypes.data,
        thumbnail,
        digest,
    )
    if result == _NO_MEMORY:
        raise MemoryError
    return NativeFacts(digest.raw.hex() if result == _WITH_DIGEST else None, histogram, grey, thumbnail.raw)
