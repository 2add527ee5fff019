"""Decodes any image file in full, and encodes RGB pixels as JPEG or PNG.

Baseline and progressive JPEGs go through libjpeg-turbo (simplejpeg), everything else through PIL. A file that is cut
off or damaged is an error: nothing here makes up missing pixels. EXIF's rotation is not applied.
"""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.dataset.thread_warnings import thread_warnings

MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 64 << 20
JPEG_START = b"\xff\xd8"

Pixels = npt.NDArray[np.uint8]
Buffer = bytes | memoryview

# What PIL's plugins raise for damaged files. SyntaxError: of a broken PNG; IndexError: of a WebP that is cut off.
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError)


class BadImageError(Exception):
    """Raised when an image can't be decoded. The message is the reason; it begins with a kind such as "truncated:"."""


# --- headers -----------------------------------------------------------------------------------------------------


def read_jpeg_header(data: Buffer) -> tuple[int, int, str]:
    """Returns (height, width, colour space) of a JPEG: "RGB", "YCbCr", "Gray", "CMYK" or "YCCK".

    Raises BadImageError if the header is damaged or announces more than MAX_IMAGE_PIXELS.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: simplejpeg's, for a colour space that it doesn't know
        raise BadImageError("damaged: no readable JPEG header") from error
    _check_num_pixels(height, width)
    return height, width, space


def read_header(data: Buffer) -> tuple[str, str, tuple[int, int]]:
    """Returns (format, mode, (height, width)) of an image, as PIL names them; mode "16-bit" for PNGs of 16 bits.

    Raises BadImageError if PIL doesn't know the format, the header is damaged, or it announces too many pixels.
    """
    try:
        with thread_warnings("ignore"), Image.open(io.BytesIO(data)) as image:
            kind, mode = str(image.format), image.mode
            width, height = image.size
            depth16 = kind == "PNG" and data[24:25] == b"\x10"
    except UnidentifiedImageError as error:
        raise BadImageError(f"no image: it begins with {bytes(data[:16])!r}") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImageError(f"damaged: no readable header ({error})") from error
    _check_num_pixels(height, width)
    return kind, "16-bit" if depth16 else mode, (height, width)


def _check_num_pixels(height: int, width: int) -> None:
    if height * width > MAX_IMAGE_PIXELS:
        raise BadImageError(f"too many pixels: {width}x{height}, the limit is {MAX_IMAGE_PIXELS:,}")


# --- pixels ------------------------------------------------------------------------------------------------------


def decode(data: Buffer) -> Pixels:
    """Returns uint8 [H, W, 3], RGB. Raises BadImageError unless the image decodes in full."""
    if data[:2] == JPEG_START:
        space = read_jpeg_header(data)[2]
        pixels = _decode_jpeg(data, "CMYK" if space in ("CMYK", "YCCK") else "RGB")
        if pixels.shape[2] == 3:
            return pixels
    return _decode_with_pil(data)


def _decode_jpeg(data: Buffer, space: str) -> Pixels:
    try:
        return simplejpeg.decode_jpeg(data, colorspace=space, strict=True)
    except ValueError as error:
        # libjpeg warns of superfluous bytes between segments, which change no pixel, and of missing data, which it
        # replaces by grey. Only the former is harmless.
        if "extraneous bytes" in str(error):
            return simplejpeg.decode_jpeg(data, colorspace=space, strict=False)
        kind = "truncated" if "remature end" in str(error) else "damaged"
        raise BadImageError(f"{kind}: {error}") from error


def rgb_pixels(image: Image.Image) -> Pixels:
    """Returns uint8 [H, W, 3], the pixels of a PIL image in RGB, as the pixels of a stored image are read."""
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, of which PIL's own conversion keeps the low bits
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _decode_with_pil(data: Buffer) -> Pixels:
    try:
        with thread_warnings("ignore"), Image.open(io.BytesIO(data)) as image:
            return rgb_pixels(image)
    except _PIL_ERRORS as error:
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise BadImageError(f"{kind}: {error}") from error


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


def encode_planes(planes: bytes) -> bytes:
    """Returns a PNG (lossless) of a CIFAR image: 32x32 R, then G, then B values, 3,072 bytes."""
    pixels = np.frombuffer(planes, dtype=np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
    return encode_png(np.ascontiguousarray(pixels))
