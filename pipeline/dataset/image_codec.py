"""One image of a source: stored as it is, repaired, or refused with a reason; and what is to be known of its pixels.

What decodes in full is kept. A JPEG in RGB or YCbCr, and an 8-bit RGB PNG under its own name, are stored byte for
byte. Everything else that decodes (grey, CMYK and YCCK JPEGs, 16-bit, palette and grey PNGs, WebP, BMP, PNGs named
.JPEG) is stored as an RGB JPEG of quality 95 without chroma subsampling (an RGB PNG where the name says .png), and
EXIF that can't be parsed is cut out, which leaves the pixels as they were. EXIF's rotation is not applied.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 64 << 20
REPAIR_QUALITY = 95
THUMBNAIL_PX = 16
HASH_PX = 32
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_EOI_WITHIN = 4096

Pixels = npt.NDArray[np.uint8]
Buffer = bytes | memoryview
Checks = Literal["decode", "header"]


@dataclass(frozen=True)
class Handling:
    """How images are looked at and stored.

    checks: "decode" decodes every image in full; "header" trusts a JPEG that begins and ends like one, which finds
    truncation but no damage in between, and knows nothing of pixels. shorter_side_px: larger images are shrunk so
    that their shorter side has this many pixels; 0 leaves them. jpeg_quality: of images that are shrunk, and, where
    not 0, of all others too.
    """

    checks: Checks = "decode"
    shorter_side_px: int = 0
    jpeg_quality: int = 0

    @property
    def reencodes(self) -> bool:
        """Whether images may be stored in another size or quality than they come."""
        return bool(self.shorter_side_px or self.jpeg_quality)


DEFAULT_SHRUNK_QUALITY = 90


@dataclass(frozen=True)
class PixelFacts:
    """What is known of an image's pixels, all of it exact.

    sha256: over height, width and RGB bytes. histogram: int64 [768], counts of each value in R, G and B.
    perceptual_hash: see `perceptual_hash`. thumbnail: 16x16 greys.
    """

    sha256: str
    histogram: npt.NDArray[np.int64]
    perceptual_hash: int
    thumbnail: bytes


@dataclass(frozen=True)
class Stored:
    """An image to be stored: its bytes, size, and what was done to it ("" for nothing). facts: None unless decoded."""

    data: Buffer
    height: int
    width: int
    source_sha256: str
    repair: str
    facts: PixelFacts | None


@dataclass(frozen=True)
class Refused:
    """An image that can't be stored, and why."""

    reason: str
    source_sha256: str


class BadImageError(Exception):
    """The reason for which an image is refused. Never leaves `pipeline` as it is."""


def examine(data: Buffer, name: str, handling: Handling) -> Stored | Refused:
    """Returns what becomes of one encoded image. name: its key, whose suffix says what it claims to be."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        stored, repair, size = _as_stored(data, name, handling)
        pixels = None
        if handling.checks == "decode" or handling.reencodes:
            pixels = decode(stored)
        if pixels is not None and handling.reencodes:
            smaller, remark = _reencode(pixels, stored, handling)
            if remark:
                repair = "; ".join(filter(None, (repair, remark)))
                stored, pixels = smaller, decode(smaller)
    except BadImageError as bad:
        return Refused(str(bad), digest)
    height, width = size if pixels is None else pixels.shape[:2]
    return Stored(stored, height, width, digest, repair, None if pixels is None else pixel_facts(pixels))


def examine_planes(planes: bytes, handling: Handling) -> Stored:
    """Returns CIFAR's 32x32 R, G and B planes as a PNG."""
    data = encode_planes(planes)
    facts = pixel_facts(decode(data)) if handling.checks == "decode" else None
    return Stored(data, 32, 32, hashlib.sha256(planes).hexdigest(), "", facts)


def _as_stored(data: Buffer, name: str, handling: Handling) -> tuple[Buffer, str, tuple[int, int]]:
    """Returns (bytes, repair, (height, width)). Raises BadImageError."""
    if not data:
        raise BadImageError("empty: zero bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImageError(f"too large: {len(data):,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
    if data[:2] == _SOI:
        height, width, space = _jpeg_header(data)
        if space in ("YCbCr", "RGB"):
            repaired, repair = _without_broken_exif(data)
            if handling.checks == "header" and _EOI not in bytes(data[-_EOI_WITHIN:]):
                decode(data)  # looks truncated: find out
            return repaired, repair, (height, width)
        kind = f"{space} JPEG"
    else:
        kind, mode, (height, width) = _other_header(data)
        if kind == "PNG" and mode == "RGB" and name.lower().endswith(".png"):
            if handling.checks == "header":
                decode(data)
            return data, "", (height, width)
        kind = f"{mode} {kind}"
    png = name.lower().endswith(".png")
    pixels = decode(data)
    what = f"{kind} converted to RGB {'PNG' if png else f'JPEG of quality {REPAIR_QUALITY}'}"
    return (_png(pixels) if png else encode_jpeg(pixels, REPAIR_QUALITY, "444")), what, pixels.shape[:2]


def _jpeg_header(data: Buffer) -> tuple[int, int, str]:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: of a colour space that it doesn't know
        raise BadImageError("damaged: no readable JPEG header") from error
    _check_pixels(height, width)
    return height, width, space


def _other_header(data: Buffer) -> tuple[str, str, tuple[int, int]]:
    try:
        with _quietly(), Image.open(io.BytesIO(data)) as image:
            kind, mode = str(image.format), image.mode
            width, height = image.size
            depth16 = kind == "PNG" and data[24:25] == b"\x10"
    except UnidentifiedImageError as error:
        raise BadImageError(f"no image: it begins with {bytes(data[:16])!r}") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImageError(f"damaged: no readable header ({error})") from error
    _check_pixels(height, width)
    return kind, "16-bit" if depth16 else mode, (height, width)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_IMAGE_PIXELS:
        raise BadImageError(f"too many pixels: {width}x{height}, the limit is {MAX_IMAGE_PIXELS:,}")


def _segments(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of a JPEG's segments before the image itself."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield data[position + 1], position, end
        position = end


def _without_broken_exif(data: Buffer) -> tuple[Buffer, str]:
    """Returns the JPEG without EXIF segments that PIL can't parse; most images have none to look at."""
    exif = [
        (start, end) for kind, start, end in _segments(data) if kind == 0xE1 and data[start + 4 : start + 8] == b"Exif"
    ]
    if not exif or _is_readable_exif(data):
        return data, ""
    whole = bytes(data)
    for start, end in reversed(exif):
        whole = whole[:start] + whole[end:]
    return whole, "unreadable EXIF removed"


def _is_readable_exif(data: Buffer) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data)) as image:
                dict(image.getexif())
    except Exception:  # whatever PIL stumbles over, the segment is of no use to anyone
        return False
    return True


# --- pixels ------------------------------------------------------------------------------------------------------


def decode(data: Buffer) -> Pixels:
    """Returns uint8 [H, W, 3], RGB. Raises BadImageError unless the image decodes in full."""
    if data[:2] == _SOI:
        space = _jpeg_header(data)[2]
        pixels = _decode_jpeg(data, "CMYK" if space in ("CMYK", "YCCK") else "RGB")
        if pixels.shape[2] == 3:
            return pixels
    return _decode_by_pil(data)


def _decode_jpeg(data: Buffer, space: str) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(data, colorspace=space, strict=True)
    except ValueError as error:
        # libjpeg warns of a few bytes too many between segments, which changes no pixel, and of missing data, for
        # which it makes some up.
        if "extraneous bytes" in str(error):
            return simplejpeg.decode_jpeg(data, colorspace=space, strict=False)
        what = "truncated" if "remature end" in str(error) else "damaged"
        raise BadImageError(f"{what}: {error}") from error


def _decode_by_pil(data: Buffer) -> Pixels:
    try:
        with _quietly(), Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith("I"):  # 16-bit grey, of which PIL's own conversion keeps the low bits
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        what = "truncated" if "truncated" in str(error) else "damaged"
        raise BadImageError(f"{what}: {error}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def encode_jpeg(pixels: Pixels, quality: int, subsampling: str = "420") -> bytes:
    """Returns a JPEG of RGB pixels."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling=subsampling, fastdct=False
    )
    return data


def _png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def encode_planes(planes: bytes) -> bytes:
    """Returns a PNG (lossless) of 32x32 R, G and B planes."""
    pixels = np.frombuffer(planes, dtype=np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
    return _png(np.ascontiguousarray(pixels))


def _reencode(pixels: Pixels, stored: Buffer, handling: Handling) -> tuple[Buffer, str]:
    """Returns (bytes, what was done); nothing is done to an image that is small enough already."""
    height, width = pixels.shape[:2]
    side = handling.shorter_side_px
    if side and min(height, width) > side:
        scale = side / min(height, width)
        size = (max(side, round(width * scale)), max(side, round(height * scale)))
        quality = handling.jpeg_quality or DEFAULT_SHRUNK_QUALITY
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return encode_jpeg(small, quality), f"shrunk to {size[0]}x{size[1]}, JPEG of quality {quality}"
    if handling.jpeg_quality:
        return encode_jpeg(pixels, handling.jpeg_quality), f"JPEG of quality {handling.jpeg_quality}"
    return stored, ""


# --- what is known of them ---------------------------------------------------------------------------------------


def pixel_facts(pixels: Pixels) -> PixelFacts:
    """Returns the facts of uint8 [H, W, 3]."""
    image = Image.fromarray(pixels)
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    grey = grey_square(image, HASH_PX)
    small = grey.reshape(THUMBNAIL_PX, 2, THUMBNAIL_PX, 2).mean(axis=(1, 3))
    return PixelFacts(
        digest.hexdigest(),
        np.array(image.histogram(), dtype=np.int64),
        perceptual_hash(grey),
        np.round(small).astype(np.uint8).tobytes(),
    )


def grey_square(image: Image.Image, side: int) -> npt.NDArray[np.float64]:
    """Returns float64 [side, side], 0 to 255: the whole image, squeezed, in grey (ITU-R 601)."""
    box = Image.Resampling.BOX if min(image.size) >= side else Image.Resampling.BILINEAR
    return np.asarray(image.resize((side, side), box, reducing_gap=2.0).convert("L"), dtype=np.float64)


@lru_cache
def _cosines(side: int) -> npt.NDArray[np.float64]:
    # The rows of the DCT-II that the hash needs.
    frequency, place = np.arange(9)[:, None], np.arange(side)[None, :]
    return np.asarray(np.cos(np.pi * frequency * (2 * place + 1) / (2 * side)))


@lru_cache
def _frequencies() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    pairs = [(u, v) for u in range(9) for v in range(9) if 0 < u + v <= 10][:64]
    return np.array([u for u, _ in pairs]), np.array([v for _, v in pairs])


def perceptual_hash(grey: npt.NDArray[np.float64]) -> int:
    """Returns 64 bits: the signs of 64 low frequencies of the DCT of a grey square.

    After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with the sign in place
    of the comparison with the median.
    """
    cosines = _cosines(grey.shape[0])
    spectrum = cosines @ grey @ cosines.T
    bits = spectrum[_frequencies()] > 0
    return int(np.packbits(bits).view(np.uint64)[0])
