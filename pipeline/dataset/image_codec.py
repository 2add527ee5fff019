"""Decodes any image file in full, and encodes RGB pixels as JPEG or PNG.

JPEGs go through libjpeg-turbo (simplejpeg), or native code that gives the same pixels; all else goes through PIL. Files
that are cut off or damaged are errors: nothing here makes up missing pixels. EXIF's rotation is not applied, colour
profiles neither, and transparency is dropped: the colours below it show. Of several frames or pages the first is read.
"""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.core.thread_warnings import thread_warnings
from pipeline.dataset.jpeg_segments import pixel_segments, read_frame, without_stray_bytes
from pipeline.dataset.native.pixels import decode_ordinary_jpeg

MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 64 << 20
MAX_SIDE_PX = 65_500  # libjpeg's limit
JPEG_START = b"\xff\xd8"

Pixels = npt.NDArray[np.uint8]
Buffer = bytes | memoryview

# Formats of PIL that are no pictures made of pixels. For EPS it would start another program, Ghostscript.
_OTHER_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The first bytes of files that are images, whether or not PIL reads them. HEIC and AVIF have "ftyp" at byte 4.
_IMAGE_STARTS = (b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_UNSUPPORTED = re.compile("Unsupported JPEG|Unsupported color|subsampling level|not implemented|not supported")
_MOST_STRAY = 64  # places of stray bytes in one JPEG's scans; a guess, each costs a decoding
_LONGEST_REASON = 300


class BadImageError(Exception):
    """Raised when an image can't be decoded. The message is the reason; it begins with a kind such as "truncated:"."""


def describe(error: Exception) -> str:
    """Returns the text of a library's error on one line, with its type where the text alone says little."""
    text = " ".join(str(error).split())
    common = isinstance(error, OSError | SyntaxError | ValueError | EOFError | IndexError)
    return (text if common and text else f"{type(error).__name__}: {text}".removesuffix(": "))[:_LONGEST_REASON]


# --- headers -----------------------------------------------------------------------------------------------------


def read_jpeg_header(data: Buffer) -> tuple[int, int, str]:
    """Returns (height, width, colour space) of a JPEG: "RGB", "YCbCr", "Gray", "CMYK" or "YCCK".

    Raises BadImageError if the header is damaged or announces more than MAX_IMAGE_PIXELS.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception as error:  # KeyError: simplejpeg's, for a colour space that it doesn't know
        if _UNSUPPORTED.search(str(error)):
            raise BadImageError(_unsupported(data, error)) from error
        raise BadImageError("damaged: no readable JPEG header") from error
    _check_size(height, width)
    return height, width, space


def read_header(data: Buffer) -> tuple[str, str, tuple[int, int]]:
    """Returns (format, mode, (height, width)) of an image, as PIL names them; mode "16-bit" for PNGs of 16 bits.

    Raises BadImageError if PIL doesn't know the format, the header is damaged, or it announces too many pixels.
    """
    try:
        with thread_warnings("ignore"), _open(data) as image:
            kind, mode = str(image.format), image.mode
            width, height = image.size
            depth16 = kind == "PNG" and data[24:25] == b"\x10"
    except UnidentifiedImageError as error:
        raise BadImageError(_unknown(bytes(data[:16]))) from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too many pixels: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise almost anything for damaged files
        raise BadImageError(f"damaged: no readable header ({describe(error)})") from error
    _check_size(height, width)
    return kind, "16-bit" if depth16 else mode, (height, width)


def _unknown(start: bytes) -> str:
    if start.startswith(_IMAGE_STARTS) or start[4:8] == b"ftyp":
        return f"unsupported: an image of a kind that PIL can't read, or a damaged one; it begins with {start!r}"
    return f"no image: it begins with {start!r}"


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise BadImageError(f"no pixels: {width}x{height}")
    if height * width > MAX_IMAGE_PIXELS:
        raise BadImageError(f"too many pixels: {width}x{height}, the limit is {MAX_IMAGE_PIXELS:,}")
    if max(height, width) > MAX_SIDE_PX:
        raise BadImageError(f"too long: {width}x{height} pixels, the limit of a side is {MAX_SIDE_PX:,}")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.preinit()  # the common formats first, as `Image.open` has them
    Image.init()
    return tuple(name for name in Image.ID if name not in _OTHER_FORMATS)


def _open(data: Buffer) -> Image.Image:
    is_png = data[:8] == b"\x89PNG\r\n\x1a\n"  # the other formats take a while to load
    return Image.open(io.BytesIO(data), formats=("PNG",) if is_png else _formats())


# --- pixels ------------------------------------------------------------------------------------------------------


def decode(data: Buffer) -> Pixels:
    """Returns uint8 [H, W, 3], RGB. Raises BadImageError unless the image decodes in full."""
    if data[:2] != JPEG_START:
        return _decode_with_pil(data)
    height, width, space = read_jpeg_header(data)
    if space == "YCbCr":
        ordinary = decode_ordinary_jpeg(data, height, width)
        if ordinary is not None:
            return ordinary
    frame = read_frame(data)
    if frame is not None and frame.process == "lossless":
        return _decode_lossless(data, space, frame.precision_bits)
    pixels = _decode_jpeg(data, "CMYK" if space in ("CMYK", "YCCK") else "RGB")
    return pixels if pixels.shape[2] == 3 else _decode_with_pil(data)


def _decode_lossless(data: Buffer, space: str, precision_bits: int) -> Pixels:
    """Returns the pixels of a lossless JPEG, whose values libjpeg neither scales to 8 bits nor converts from grey."""
    pixels = _decode_jpeg(data, "GRAY" if space == "Gray" else "RGB")
    most = (1 << precision_bits) - 1
    scaled = ((pixels.astype(np.uint16) * 255 + most // 2) // most).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)))


def _decode_jpeg(data: Buffer, space: str) -> Pixels:
    try:
        return _decode(data, space)
    except ValueError as error:
        # libjpeg warns of missing data, which it replaces by grey, and of things that change no pixel: metadata that it
        # doesn't understand, and superfluous bytes. Without those the JPEG must decode without any warning, and with
        # them to the same pixels.
        with suppress(ValueError):
            core = pixel_segments(data)
            pixels = _decode_without_stray(core, space, iter(range(_MOST_STRAY)))
            if np.array_equal(pixels, _decode(core, space, strict=False)):
                return pixels
        if _UNSUPPORTED.search(str(error)):
            raise BadImageError(_unsupported(data, error)) from error
        kind = "truncated" if "remature end" in str(error) else "damaged"
        raise BadImageError(f"{kind}: {describe(error)}") from error


def _unsupported(data: Buffer, error: Exception) -> str:
    frame = read_frame(data)
    return f"unsupported: {frame.oddity if frame else ''} JPEG ({describe(error)})".replace(":  ", ": ")


def _decode(data: Buffer, space: str, strict: bool = True) -> Pixels:
    """Returns the pixels. Raises ValueError; strict: for the first warning of libjpeg, too."""
    pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace=space, strict=strict)
    return pixels


def _decode_without_stray(data: bytes, space: str, tries: Iterator[int]) -> Pixels:
    """Returns the pixels without superfluous bytes in the scans. Raises ValueError if there is other damage, too."""
    try:
        return _decode(data, space)
    except ValueError as error:
        for shorter in without_stray_bytes(data, str(error)):
            if next(tries, None) is None:
                break
            with suppress(ValueError):
                return _decode_without_stray(shorter, space, tries)
        raise


def rgb_pixels(image: Image.Image) -> Pixels:
    """Returns uint8 [H, W, 3], the pixels of a PIL image in RGB, as the pixels of a stored image are read.

    Raises ValueError for modes whose values have no agreed range.
    """
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, of which PIL's own conversion keeps the low bits
        values = np.asarray(image)
        if image.mode == "I" and not (values.max() == 0 or (values.min() >= 0 and 255 < values.max() < 1 << 16)):
            raise ValueError("32-bit integer pixels are not supported; convert them to 8 or 16 bits")
        grey = (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported; convert them to 8 or 16 bits")
    return np.asarray(image.convert("RGB"))


def _decode_with_pil(data: Buffer) -> Pixels:
    try:
        with thread_warnings("ignore"), _open(data) as image:
            return rgb_pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise almost anything for damaged files
        text = str(error)
        kind = "truncated" if "truncated" in text else "damaged"
        kind = "too many pixels" if isinstance(error, Image.DecompressionBombError) else kind
        raise BadImageError(f"{'unsupported' if 'not supported' in text else kind}: {describe(error)}") from error


def encode_jpeg(pixels: Pixels, quality: int, subsampling: str = "420") -> bytes:
    """Returns a JPEG of uint8 [H, W, 3], RGB. quality: 1 to 100. subsampling: of chroma, "444" for none."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling=subsampling, fastdct=False
    )
    return data


def encode_png(pixels: Pixels) -> bytes:
    """Returns a PNG (lossless) of uint8 [H, W, 3], RGB."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def planes_to_pixels(planes: bytes) -> Pixels:
    """Returns uint8 [32, 32, 3], RGB, of a CIFAR image: 32x32 R, then G, then B values, 3,072 bytes."""
    pixels = np.frombuffer(planes, dtype=np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels)
