"""JPEGs that no library here writes: lossless ones (ITU-T T.81, annex H), arithmetic-coded ones, and changed ones."""

import base64
import io
import struct

import numpy as np
import numpy.typing as npt

from tests.support.pictures.images import picture

# picture(7, 24, 32) as PIL's JPEG of quality 60, coded anew without loss by libjpeg-turbo's jpegtran -arithmetic.
_ARITHMETIC = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk
//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAYACADASIAAhEBAxEB
/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDOWk/uM0vkCPQ/RfMp0mq6L2p09ETb+FKxT2zRJdvgHli+s5aW5GWkwG5QX5pqpLoENrFOJzU9qlOQdAT5/H
Xkmmnw5Pu3pfS0RtytjjyswA+0IV/aEq8jjXSGW+l0FUg6pHh/eb6ah3rhDduPBtixMPfTAXsKf7WYOCuTDoxk+GU2Pq5v0g9exRLeVxD/2Q==
"""
_CODE_BITS, _NUM_SIZES = 4, 10  # the code of a difference of s bits is s itself, in four bits


def lossless_jpeg(pixels: npt.NDArray[np.uint8], precision_bits: int = 8) -> bytes:
    """Returns a lossless JPEG (SOF3, predictor 1) of uint8 [H, W, C], with C of 1 or 3, of values below 2^precision."""
    height, width, channels = pixels.shape
    bits = "".join(_code(d) for line in _differences(pixels.astype(int), precision_bits) for d in line)
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    ids = b"RGB"[:channels] if channels == 3 else b"\x01"
    frame = struct.pack(">BHHB", precision_bits, height, width, channels) + b"".join(bytes([n, 0x11, 0]) for n in ids)
    table = b"\0" + bytes([0, 0, 0, _NUM_SIZES] + [0] * 12) + bytes(range(_NUM_SIZES))
    header = bytes([channels]) + b"".join(bytes([n, 0]) for n in ids) + b"\x01\0\0"
    parts = [segment(0xC3, frame), segment(0xC4, table), segment(0xDA, header), scan]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def arithmetic_jpeg() -> tuple[bytes, bytes]:
    """Returns (an arithmetic-coded JPEG of 24x32 pixels, a baseline JPEG with the same coefficients)."""
    out = io.BytesIO()
    picture(7, 24, 32).save(out, format="JPEG", quality=60)
    return base64.b64decode(_ARITHMETIC), out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Returns one segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Returns a JPEG with a segment added as its first."""
    return data[:2] + segment(marker, content) + data[2:]


def with_frame_marker(data: bytes, marker: int) -> bytes:
    """Returns a baseline JPEG that claims to be coded in another way."""
    place = data.index(b"\xff\xc0")
    return data[: place + 1] + bytes([marker]) + data[place + 2 :]


def _differences(pixels: npt.NDArray[np.int64], precision_bits: int) -> list[list[int]]:
    """Returns each value less the one to its left; above for the first of a line, half the range for the very first."""
    before = np.roll(pixels, 1, axis=1)
    before[1:, 0] = pixels[:-1, 0]
    before[0, 0] = 1 << (precision_bits - 1)
    difference: list[list[int]] = (pixels - before).reshape(len(pixels), -1).tolist()
    return difference


def _code(difference: int) -> str:
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return f"{size:0{_CODE_BITS}b}" + (f"{value:0{size}b}" if size else "")
