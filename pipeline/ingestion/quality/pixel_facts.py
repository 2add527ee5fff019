"""Facts of an image's pixels, stored in a data set's provenance: hash, histogram, perceptual hash, thumbnail."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.dataset.image_codec import Pixels
from pipeline.dataset.native.pixels import SQUARE_PX, native_facts
from pipeline.dataset.schema import THUMBNAIL_PX

HASH_PX = SQUARE_PX


@dataclass(frozen=True)
class PixelFacts:
    """Facts of an image's pixels, all of them exact."""

    sha256: str  # hex, over "HEIGHTxWIDTH:" and the RGB bytes
    histogram: npt.NDArray[np.int64]  # [768]: counts of the values 0 to 255 in R, then G, then B
    perceptual_hash: int  # 64 bits, see `perceptual_hash`
    thumbnail: bytes  # THUMBNAIL_PX x THUMBNAIL_PX grey values


def pixel_facts(pixels: Pixels) -> PixelFacts:
    """Returns the facts of uint8 [H, W, 3], RGB: by native code, or by libraries, which give the same."""
    found = native_facts(pixels)
    if found is not None:
        hashed = perceptual_hash(found.grey)
        return PixelFacts(found.sha256 or _sha256(pixels), found.histogram, hashed, found.thumbnail)
    image = Image.fromarray(pixels)
    grey = grey_square(image, HASH_PX)
    histogram = np.array(image.histogram(), dtype=np.int64)
    return PixelFacts(_sha256(pixels), histogram, perceptual_hash(grey), _thumbnail(grey))


def _sha256(pixels: Pixels) -> str:
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _thumbnail(grey: npt.NDArray[np.float64]) -> bytes:
    small = grey.reshape(THUMBNAIL_PX, 2, THUMBNAIL_PX, 2).mean(axis=(1, 3))
    return np.round(small).astype(np.uint8).tobytes()


def grey_square(image: Image.Image, side: int) -> npt.NDArray[np.float64]:
    """Returns float64 [side, side], 0 to 255: the whole image in grey (ITU-R 601), its aspect ratio not kept."""
    box = Image.Resampling.BOX if min(image.size) >= side else Image.Resampling.BILINEAR
    return np.asarray(image.resize((side, side), box, reducing_gap=2.0).convert("L"), dtype=np.float64)


@lru_cache
def _cosines(side: int) -> npt.NDArray[np.float64]:
    """Returns float64 [9, side]: the rows of the DCT-II that the hash needs."""
    frequency, place = np.arange(9)[:, None], np.arange(side)[None, :]
    return np.asarray(np.cos(np.pi * frequency * (2 * place + 1) / (2 * side)))


@lru_cache
def _frequencies() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns (u, v) of 64 low frequencies without the mean, (0, 0): one for each bit of the hash."""
    pairs = [(u, v) for u in range(9) for v in range(9) if 0 < u + v <= 10][:64]
    return np.array([u for u, _ in pairs]), np.array([v for _, v in pairs])


def perceptual_hash(grey: npt.NDArray[np.float64]) -> int:
    """Returns 64 bits: the signs of 64 low frequencies of the DCT of a grey square.

    After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), but the coefficients are
    compared with zero rather than with their median. The hash is stored in every data set, so it must not change.
    """
    cosines = _cosines(grey.shape[0])
    spectrum = cosines @ grey @ cosines.T
    bits = spectrum[_frequencies()] > 0
    return int(np.packbits(bits).view(np.uint64)[0])
