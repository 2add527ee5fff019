"""A cache of row groups of object storage, on a disk of the node that reads them.

A row group is fetched whole, by one request, when the first of its rows is wanted, and stays: a node fetches each row
group once, in whatever order rows are read, in one epoch or a hundred. Nothing is evicted. If the disk has no room, the
caller reads rows instead of row groups.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import uuid
from pathlib import Path

from pipeline.core.errors import StorageError
from pipeline.dataset.manifest import Split
from pipeline.storage import files

RESERVED_BYTES = 2 << 30  # of the disk, left free for others
_NUM_LOCKS = 64  # lock files; two row groups that share one are fetched one after the other


def folder_of(parent: str, split: Split) -> str:
    """Returns the folder below `parent` for the row groups of a split: one for each content, wherever it lies."""
    names = "".join(shard.sha256 for shard in split.shards)
    return os.path.join(parent, hashlib.sha256(names.encode()).hexdigest()[:16])


def has_room(folder: str, num_bytes: int) -> bool:
    """Whether the disk of `folder` has room for so many bytes. Makes the folder; raises StorageError if it can't be."""
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return shutil.disk_usage(folder).free - num_bytes > RESERVED_BYTES
    except OSError as error:
        raise StorageError(
            f"cache={folder}: can't be written on this node ({error.strerror}); give a folder on a disk of its own"
        ) from error


def is_cached(folder: str, group: int, length: int) -> bool:
    """Whether a row group of `length` bytes is in the cache in full."""
    try:
        return os.stat(_path(folder, group)).st_size == length
    except OSError:  # no such file, or a folder that can't be used, of which `has_room` tells
        return False


def whole_group(folder: str, group: int, uri: str, offset: int, length: int) -> memoryview:
    """Returns a row group, `length` bytes at `offset` of `uri`, from the cache; one process of the node fetches it.

    Raises what `files.read_range` raises.
    """
    if not is_cached(folder, group, length):
        with open(os.path.join(folder, f"{group % _NUM_LOCKS}.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_cached(folder, group, length):  # another process may have fetched it meanwhile
                data = files.read_range(uri, offset, length)
                if not _store(folder, group, data):
                    return data
    with open(_path(folder, group), "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _path(folder: str, group: int) -> str:
    return os.path.join(folder, f"{group:07d}")


def _store(folder: str, group: int, data: memoryview) -> bool:
    """Writes a row group into the cache. Returns False if the disk is full."""
    temporary = Path(folder, f"{group}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(_path(folder, group))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # something else has taken the room since `has_room`
    return True
