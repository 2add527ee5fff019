"""Files on local disks: mapped into memory, read by ranges, and replaced at once."""

import errno
import fcntl
import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from pipeline.storage.file_names import real_path
from pipeline.storage.system_errors import one_line_errors

_WRITE_BYTES = 8 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class MappedFile:
    """A local file mapped into memory, so that reads don't copy.

    If the file is truncated while it is mapped, a read ends the process (SIGBUS).
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def read(self, offset: int, length: int) -> memoryview:
        """Returns `length` bytes at `offset`. Raises OSError if there are fewer."""
        data = self._view[offset : offset + length]
        if len(data) != length:
            raise OSError(f"{len(data)} bytes at {offset}, {length} were expected; the file is truncated")
        return data

    def prefetch(self, offset: int, length: int) -> None:
        """Asks the system to read a range ahead (madvise), if it isn't in memory."""
        if hasattr(self._map, "madvise") and offset + length <= len(self._view):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + length - start)


def map_file(path: str) -> MappedFile:
    """Returns a local file mapped into memory; the last 256 files stay open. Raises OSError."""
    with one_line_errors(path):
        found = os.stat(path)
        if not found.st_size:
            raise OSError(f"{path}: the file is empty")
        return _map_file(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _map_file(path: str, inode: int, size: int, modified_ns: int) -> MappedFile:
    return MappedFile(path)  # a new file of the same name has another inode, so it isn't taken for the old one


def read_local_range(path: str, offset: int, length: int) -> bytes:
    """Returns up to `length` bytes at `offset`; the last 64 files stay open."""
    path = real_path(path)
    with one_line_errors(path):
        found = os.stat(path)
        stream = _open_local(path, found.st_ino, found.st_mtime_ns)
    return os.pread(stream.fileno(), length, offset)


@lru_cache(maxsize=64)
def _open_local(path: str, inode: int, modified_ns: int) -> IO[bytes]:
    # A new file of the same name has another inode. A file is closed when the cache and all readers have dropped it.
    return open(path, "rb", buffering=0)


@contextmanager
def temporary_beside(path: str) -> Iterator[str]:
    """Yields the path of a temporary file, which replaces `path` at the end of the block, or is removed on an error.

    Raises StorageError if the disk is full or the folder can't be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with one_line_errors(path, writing=True):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # of a folder that can't be reached, which the block has told
            Path(temporary).unlink()


def write_direct(path: str, memory: mmap.mmap, size: int) -> None:
    """Writes the first `size` bytes of an anonymous mapping, past the page cache if the disk can, and flushes them."""
    flags = os.O_WRONLY | os.O_CREAT
    try:
        file = os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file = os.open(path, flags, 0o666)  # a file system without O_DIRECT
    try:
        done, end = 0, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # whole blocks
        while done < end:
            with memoryview(memory) as view, view[done : min(end, done + _WRITE_BYTES)] as part:
                try:
                    done += os.write(file, part)
                except OSError as error:
                    now = fcntl.fcntl(file, fcntl.F_GETFL)
                    if error.errno != errno.EINVAL or not now & _O_DIRECT:
                        raise
                    fcntl.fcntl(file, fcntl.F_SETFL, now & ~_O_DIRECT)  # the disk's blocks are larger than a page
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)
