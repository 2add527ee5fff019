"""A file inside an object, read by ranges: what libraries for archives and Parquet take for an open file."""

import io
from dataclasses import dataclass
from typing import Any

from pipeline.storage import files

_SMALL_WINDOW, _LARGE_WINDOW = 4 << 10, 1 << 20


@dataclass(frozen=True)
class Place:
    """A file that lies at `offset` of an object and has `length` bytes: a tar, a zip or a Parquet file."""

    name: str  # for messages
    object: str  # absolute URI
    offset: int
    length: int


class BeforeStartError(OSError):
    """Raised where a damaged archive points before its own start: the error of a file, which libraries expect."""


class RangedFile(io.RawIOBase):
    """A file whose reads are ranged reads: small ones while they are far apart, growing ones while they are near."""

    def __init__(self, place: Place) -> None:
        self._place, self._position = place, 0
        self._data, self._start, self._size = memoryview(b""), 0, _SMALL_WINDOW

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._place.length}[whence]
        if self._position < 0:
            raise BeforeStartError(f"{self._place.name}: position {self._position} lies before the start of the file")
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, as `io.BufferedReader` asks for it, and returns the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Returns `size` bytes, fewer only at the end of the file."""
        left = self._place.length - self._position
        size = max(0, min(size if size is not None and size >= 0 else left, left))
        if not size:
            return b""
        if not self._start <= self._position <= self._position + size <= self._start + len(self._data):
            near = self._position - (self._start + len(self._data)) < _SMALL_WINDOW
            self._size = min(_LARGE_WINDOW, 2 * self._size) if near else _SMALL_WINDOW
            length = min(max(size, self._size), left)
            self._data = files.read_range(self._place.object, self._place.offset + self._position, length)
            self._start = self._position
        start = self._position - self._start
        self._position += size
        return bytes(self._data[start : start + size])
