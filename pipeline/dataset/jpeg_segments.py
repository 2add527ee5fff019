"""The segments of a JPEG before its first scan, and what its frame header says, as libjpeg reads them (ITU-T T.81)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Buffer = bytes | memoryview

APP1, START_OF_SCAN = 0xE1, 0xDA
_PROCESSES = {
    0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless", 0xC5: "hierarchical",
    0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic", 0xCA: "arithmetic", 0xCB: "arithmetic",
    0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical",
}  # fmt: skip
_COMMON_PROCESSES = ("baseline", "extended", "progressive")
_NO_LENGTH = (0x00, 0x01, *range(0xD0, 0xD8))  # no marker but a stuffed byte; a marker without content; restarts
_APP0, _APP14, _COMMENT = 0xE0, 0xEE, 0xFE
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")  # libjpeg's JWRN_EXTRANEOUS_DATA


@dataclass(frozen=True)
class Frame:
    """The frame header of a JPEG."""

    process: str
    """How it is coded: "baseline", "extended" or "progressive", all three by Huffman codes, or a rarer process."""

    precision_bits: int

    @property
    def oddity(self) -> str:
        """Returns "" for a JPEG that every decoder reads, or how it differs: "arithmetic", "lossless", "12-bit".

        Every decoder reads Huffman-coded DCT of 8 bits.
        """
        if self.process not in _COMMON_PROCESSES:
            return self.process
        return "" if self.precision_bits == 8 else f"{self.precision_bits}-bit"


class Segment(NamedTuple):
    """One segment, data[start:end], marker and length included."""

    marker: int
    start: int
    end: int


def segments(data: Buffer) -> Iterator[Segment]:
    """Yields the segments between a JPEG's start and its first scan, the scan's header being the last.

    Bytes that belong to none are passed over, as libjpeg does. Ends early where the data do.
    """
    position, size = 2, len(data)
    while position + 4 <= size:
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # a stray byte, or one that fills up
            position += 1
        elif marker in _NO_LENGTH:
            position += 2
        elif marker in (0xD8, 0xD9):  # a second start, or the end
            return
        else:
            end = position + 2 + (data[position + 2] << 8) + data[position + 3]
            yield Segment(marker, position, min(end, size))
            if marker == START_OF_SCAN:
                return
            position = end


def read_frame(data: Buffer) -> Frame | None:
    """Returns the frame header of a JPEG, or None if there is none before the first scan."""
    for marker, start, end in segments(data):
        if marker in _PROCESSES:
            return Frame(_PROCESSES[marker], data[start + 4]) if end - start > 4 else None
    return None


def pixel_segments(data: Buffer) -> bytes:
    """Returns the JPEG without what changes no pixel: metadata, and stray bytes between the segments.

    Of the metadata JFIF's and Adobe's segments stay, which tell the colour space.
    """
    parts, end = [bytes(data[:2])], 2
    for segment in segments(data):
        content = bytes(data[segment.start : segment.end])
        end = segment.end
        if segment.marker == _APP0 and content[4:9] == b"JFIF\0":
            parts.append(b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0")  # version 1.1, no thumbnail
        elif not (0xE0 <= segment.marker <= 0xEF or segment.marker == _COMMENT) or (
            segment.marker == _APP14 and content[4:9] == b"Adobe"
        ):
            parts.append(content)
    return b"".join([*parts, bytes(data[end:])])


def without_stray_bytes(data: bytes, warning: str) -> Iterator[bytes]:
    """Yields the JPEG without the bytes of libjpeg's warning "13 extraneous bytes before marker 0xd9".

    The warning doesn't tell the place, so there is one for each marker of this kind after the first scan's header.
    """
    found = _STRAY.search(warning)
    if found is None:
        return
    count, marker = int(found[1]), bytes([0xFF, int(found[2], 16)])
    place = max((segment.end for segment in segments(data)), default=2)
    while (place := data.find(marker, place)) >= 0:
        yield data[: place - count] + data[place:]
        place += 2
