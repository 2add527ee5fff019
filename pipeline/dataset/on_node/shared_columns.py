"""Columns of numbers that the processes of a node share: one process computes them into a file, all map it.

They lie in a folder of the user's cache, whose size is bounded: what nobody uses goes when something new needs its
room. Small columns, and all where the folder can't be written, are in the memory of each process instead.
"""

import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import StorageError
from pipeline.core.user_folders import cache_folder
from pipeline.dataset.cache_folder import CacheFolder, Claim, size_of, use, wait_while_written

_log = logging.getLogger(__name__)

Columns = dict[str, npt.NDArray[Any]]
Parts = Callable[[], Iterator[Columns]]
"""Computes the columns, some rows after others; may be called again."""

_VERSION = 1
"""Of the values that are computed from a content, and of their place in a file: raise it when either changes."""
SHARED_BYTES = 8 << 20
"""Of columns that are shared; for smaller ones, a copy for each process costs less than a file."""
FOLDER_BYTES = 16 << 30
"""Of all columns on a node that are kept for later; those in use may take more."""


def load_columns(content: str, layout: Mapping[str, str], count: int, parts: Parts) -> tuple[Columns, str]:
    """Returns columns of `count` rows, and the path of the file that they are mapped from; "" if they are in memory.

    content: identifies the values. layout: {name: dtype}. Mapped columns can't be written to.
    """
    num_bytes = num_bytes_of(layout, count)
    if num_bytes < SHARED_BYTES:
        return _in_memory(layout, count, parts), ""
    folder = CacheFolder(os.path.join(cache_folder(), "columns"), max(FOLDER_BYTES, num_bytes))
    path = os.path.join(folder.subfolder(f"{_VERSION} {json.dumps([*layout.items()])} {content}"), "0")
    try:
        _make(folder, path, layout, count, parts)
        if (columns := map_columns(path, layout, count)) is not None:
            return columns, path
        reason = "no room, or the process that writes a file of it hangs"
    except (StorageError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    _warn_once(folder.path, reason)
    return _in_memory(layout, count, parts), ""


@lru_cache(maxsize=8)
def _mapping(path: str, inode: int) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def map_columns(path: str, layout: Mapping[str, str], count: int) -> Columns | None:
    """Returns the columns in a file; None if they aren't there. Raises OSError if they go at this moment."""
    if size_of(path) != num_bytes_of(layout, count):
        return None
    use(os.path.dirname(path))
    mapping = _mapping(path, os.stat(path).st_ino)
    return {
        name: np.frombuffer(mapping, dtype, count, offset)
        for (name, dtype), offset in zip(layout.items(), _offsets(layout, count), strict=True)
    }


def num_bytes_of(layout: Mapping[str, str], count: int) -> int:
    """Returns the bytes of columns of `count` rows."""
    return count * sum(np.dtype(dtype).itemsize for dtype in layout.values())


def _make(folder: CacheFolder, path: str, layout: Mapping[str, str], count: int, parts: Parts) -> None:
    """Makes a file of columns unless it is there, or another process makes it now, or there is no room."""
    folder.has_room(0)
    use(os.path.dirname(path))
    claim = folder.claim(path, num_bytes_of(layout, count))
    while claim == "claimed" and wait_while_written(path):
        claim = folder.claim(path, num_bytes_of(layout, count))
    if claim == "no room":
        folder.clear_others(os.path.dirname(path))
        claim = folder.claim(path, num_bytes_of(layout, count))
    if isinstance(claim, Claim):
        claim.keep_parts(_pieces(layout, count, parts), lasting=True)


def _pieces(layout: Mapping[str, str], count: int, parts: Parts) -> Iterator[tuple[int, memoryview]]:
    """Yields (offset in the file, bytes)."""
    offsets, done = _offsets(layout, count), 0
    for part in parts():
        size = len(next(iter(part.values())))
        for (name, dtype), offset in zip(layout.items(), offsets, strict=True):
            data = np.ascontiguousarray(part[name], dtype).tobytes()
            yield offset + done * np.dtype(dtype).itemsize, memoryview(data)
        done += size


def _in_memory(layout: Mapping[str, str], count: int, parts: Parts) -> Columns:
    columns = {name: np.empty(count, dtype) for name, dtype in layout.items()}
    done = 0
    for part in parts():
        size = len(next(iter(part.values())))
        for name, column in columns.items():
            column[done : done + size] = part[name]
        done += size
    return columns


def _offsets(layout: Mapping[str, str], count: int) -> list[int]:
    """Returns the first byte of each column; those of wide numbers first, so that all are aligned."""
    ends = np.cumsum([0, *(count * np.dtype(dtype).itemsize for dtype in layout.values())])
    return [int(end) for end in ends[:-1]]


@lru_cache(maxsize=4)
def _warn_once(folder: str, reason: str) -> None:
    _log.warning("%s: %s; each process keeps the index of a data set's rows in its own memory", folder, reason)
