"""Checks one image of a source: store it as it is, repair it, or refuse it with a reason.

An image that decodes in full is kept. A JPEG in RGB or YCbCr that every decoder reads (Huffman-coded, baseline or
progressive, of 8 bits) is stored byte for byte, and so is an 8-bit RGB PNG whose name ends in .png. Every other image
that decodes (arithmetic-coded, lossless, grey, CMYK and YCCK JPEGs, 16-bit, palette and grey PNGs, WebP, BMP, PNGs
named .JPEG) is stored as an RGB JPEG of quality 95 without chroma subsampling, or as an RGB PNG if its name ends in
.png. EXIF that can't be parsed is cut out; the pixels stay as they were. EXIF's rotation is not applied.

Whatever a library raises while it looks at an image makes that image a refusal.
"""

import hashlib
import io
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.thread_warnings import thread_warnings
from pipeline.dataset.image_codec import (
    JPEG_START,
    MAX_IMAGE_BYTES,
    BadImageError,
    Buffer,
    Pixels,
    decode,
    describe,
    encode_jpeg,
    encode_png,
    planes_to_pixels,
    read_header,
    read_jpeg_header,
)
from pipeline.dataset.jpeg_segments import APP1, read_frame, segments
from pipeline.dataset.png_data import missing_rows
from pipeline.ingestion.quality.pixel_facts import PixelFacts, pixel_facts

REPAIR_QUALITY = 95
DEFAULT_SHRUNK_QUALITY = 90
_JPEG_END = b"\xff\xd9"
_JPEG_END_WITHIN_BYTES = 4096  # some cameras write a few bytes after the end mark

Checks = Literal["decode", "header"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageHandling:
    """How images are checked and stored."""

    checks: Checks = "decode"
    """"decode" decodes every image in full. "header" trusts a JPEG that begins and ends like one: it finds truncated
    files but no damage in between, and the data set has no facts of pixels, so duplicates aren't looked for."""

    shorter_side_px: int = 0
    """Larger images are shrunk so that their shorter side has this many pixels, 8 to 10,000. 0: images keep their size.
    """

    jpeg_quality: int = 0
    """1 to 100: every image is encoded again with this quality. 0: only images that are shrunk are encoded again, with
    quality 90."""

    def __post_init__(self) -> None:
        if not (self.shorter_side_px == 0 or 8 <= self.shorter_side_px <= 10_000):
            raise PipelineError(f"shorter_side_px={self.shorter_side_px} must be 0, or 8 to 10000")
        if not 0 <= self.jpeg_quality <= 100:
            raise PipelineError(f"jpeg_quality={self.jpeg_quality} must be 0 (as they come), or 1 to 100")

    @property
    def reencodes(self) -> bool:
        """Whether images may be stored in another size or quality than they come."""
        return bool(self.shorter_side_px or self.jpeg_quality)


@dataclass(frozen=True)
class Stored:
    """An image to be stored."""

    data: Buffer
    height: int  # pixels
    width: int
    source_sha256: str  # hex, of the file in the source
    repair: str  # what was done to the image, "" for nothing
    facts: PixelFacts | None  # None if the image wasn't decoded


@dataclass(frozen=True)
class Refused:
    """An image that can't be stored. reason: KIND or KIND: DETAIL, where quarantined files are counted by kind."""

    reason: str
    source_sha256: str


def check_image(data: Buffer, name: str, handling: ImageHandling) -> Stored | Refused:
    """Returns the image to be stored for an encoded image, or why it is refused.

    name: the key of the row; its suffix decides whether a PNG stays a PNG.
    """
    digest = hashlib.sha256(data).hexdigest()
    try:
        return _checked(data, digest, name, handling)
    except BadImageError as bad:
        return Refused(str(bad), digest)
    except Exception as error:  # one image never ends an ingest; the reason names the error, and its kind is counted
        _log.warning("%s: can't be looked at; it is refused", name, exc_info=True)
        return Refused(f"unexpected error: {describe(error)}", digest)


def _checked(data: Buffer, digest: str, name: str, handling: ImageHandling) -> Stored:
    stored, repair, size = _repaired(data, name, handling)
    pixels = None
    if handling.checks == "decode" or handling.reencodes:
        pixels = decode(stored)
    if pixels is not None and handling.reencodes:
        smaller, change = _reencoded(pixels, stored, handling)
        if change:
            repair = "; ".join(filter(None, (repair, change)))
            stored, pixels = smaller, decode(smaller)
    height, width = size if pixels is None else pixels.shape[:2]
    return Stored(stored, height, width, digest, repair, None if pixels is None else pixel_facts(pixels))


def check_planes(planes: bytes, handling: ImageHandling) -> Stored:
    """Returns a CIFAR image, 32x32 R, G and B values, as a PNG to be stored."""
    pixels = planes_to_pixels(planes)
    facts = pixel_facts(pixels) if handling.checks == "decode" else None  # PNG keeps all pixels
    return Stored(encode_png(pixels), 32, 32, hashlib.sha256(planes).hexdigest(), "", facts)


def _repaired(data: Buffer, name: str, handling: ImageHandling) -> tuple[Buffer, str, tuple[int, int]]:
    """Returns (bytes to store, what was done, (height, width)). Raises BadImageError."""
    if not data:
        raise BadImageError("empty: zero bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImageError(f"too large: {len(data):,} bytes, the limit is {MAX_IMAGE_BYTES:,}")
    is_png_by_name = name.lower().endswith(".png")
    if data[:2] == JPEG_START:
        height, width, space = read_jpeg_header(data)
        frame = read_frame(data)
        oddity = frame.oddity if frame else "unusual"
        if space in ("YCbCr", "RGB") and not oddity:
            whole, repair = _without_broken_exif(data)
            if handling.checks == "header" and _JPEG_END not in bytes(data[-_JPEG_END_WITHIN_BYTES:]):
                decode(data)  # no end mark: raises if the file is truncated
            return whole, repair, (height, width)
        kind = f"{oddity} {space} JPEG".lstrip()
    else:
        kind, mode, (height, width) = read_header(data)
        if kind == "PNG" and missing_rows(data):
            raise BadImageError("truncated: the pixel data end before the last row")
        if kind == "PNG" and mode == "RGB" and is_png_by_name:
            if handling.checks == "header":
                decode(data)  # a PNG has no end mark that tells of truncation
            return data, "", (height, width)
        kind = f"{mode} {kind}"
    pixels = decode(data)
    if is_png_by_name:
        return encode_png(pixels), f"{kind} converted to RGB PNG", pixels.shape[:2]
    repair = f"{kind} converted to RGB JPEG of quality {REPAIR_QUALITY}"
    return encode_jpeg(pixels, REPAIR_QUALITY, "444"), repair, pixels.shape[:2]


def _reencoded(pixels: Pixels, stored: Buffer, handling: ImageHandling) -> tuple[Buffer, str]:
    """Returns (bytes to store, what was done); `stored` and "" for an image that is small enough already."""
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


# --- EXIF --------------------------------------------------------------------------------------------------------


def _without_broken_exif(data: Buffer) -> tuple[Buffer, str]:
    """Returns (JPEG without EXIF segments that PIL can't parse, what was done)."""
    app1 = [segment for segment in segments(data) if segment.marker == APP1]
    exif = [segment for segment in app1 if data[segment.start + 4 : segment.start + 8] == b"Exif"]
    if not exif or _is_readable_exif(data):
        return data, ""
    whole = bytes(data)
    for segment in reversed(exif):
        whole = whole[: segment.start] + whole[segment.end :]
    return whole, "unreadable EXIF removed"


def _is_readable_exif(data: Buffer) -> bool:
    try:
        # PIL only warns of most damage, once a line of its code, and goes on without the tag.
        with thread_warnings("error"), Image.open(io.BytesIO(data)) as image:
            dict(image.getexif())
    except Exception:  # PIL's EXIF parser raises almost anything for damaged input
        return False
    return True
