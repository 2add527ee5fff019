"""The pixel data of a PNG: are they all there? PIL fills what is missing with black, without a word.

Format: https://www.w3.org/TR/png-3/, chunks (5), interlacing (8), filtering (9).
"""

import struct
import zlib
from collections.abc import Iterator

Buffer = bytes | memoryview

PNG_START = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7: (first column, first row, step of columns, step of rows) of each pass.
_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
_PIECE_BYTES = 1 << 20


def missing_rows(data: Buffer) -> bool:
    """Whether the pixel data of a PNG end before its last row; False where its header can't be read.

    Inflates the data, piece by piece, and keeps none of them.
    """
    if len(data) < 33 or bytes(data[12:16]) != b"IHDR":
        return False
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if colour not in _CHANNELS:
        return False
    wanted = _data_bytes(width, height, depth * _CHANNELS[colour], bool(interlaced))
    found, stream = 0, zlib.decompressobj()
    try:
        for start, length in pixel_chunks(data):
            chunk = data[start : start + length]
            while chunk and not stream.eof and found < wanted:
                found += len(stream.decompress(chunk, _PIECE_BYTES))
                chunk = stream.unconsumed_tail
    except zlib.error:  # PIL says what is wrong
        return False
    return found < wanted


def _data_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Returns the bytes of all rows, each with the byte of its filter."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, columns, rows in passes:
        in_row, number = -(-(width - column) // columns), -(-(height - row) // rows)
        if in_row > 0 and number > 0:
            total += number * (1 + -(-in_row * bits // 8))
    return total


def pixel_chunks(data: Buffer) -> Iterator[tuple[int, int]]:
    """Yields (first byte, bytes) of the pixel data in each chunk of a PNG, as far as they are there."""
    at = len(PNG_START)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            yield at + 8, min(length, len(data) - at - 8)
        elif kind == b"IEND":
            return
        at += 12 + length
