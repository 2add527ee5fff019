"""Row groups of a data set in object storage, kept on a disk of the node that reads them.

A row group comes in one request when the first of its rows is wanted, and stays: a node asks for each once, whatever
the order, in one epoch or a hundred. Nothing is ever removed; where the disk has no room, rows are read one by one.
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

RESERVED_BYTES = 2 << 30  # that are left free for others
_LOCKS = 64


def folder_of(parent: str, split: Split) -> str:
    """Returns where the row groups of a split are kept below `parent`: the same bytes in the same place."""
    names = "".join(shard.sha256 for shard in split.shards)
    return os.path.join(parent, hashlib.sha256(names.encode()).hexdigest()[:16])


def has_room(folder: str, num_bytes: int) -> bool:
    """Whether so many bytes fit. Makes the folder. Raises StorageError if it can't be made."""
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return shutil.disk_usage(folder).free - num_bytes > RESERVED_BYTES
    except OSError as error:
        raise StorageError(
            f"cache={folder}: can't be written on this node ({error.strerror}); give a folder on a disk of its own"
        ) from error


def is_kept(folder: str, group: int, length: int) -> bool:
    """Whether a row group is there in full."""
    try:
        return os.stat(_place(folder, group)).st_size == length
    except OSError:  # `has_room` says what is wrong, if anything is
        return False


def whole_group(folder: str, group: int, uri: str, offset: int, length: int) -> memoryview:
    """Returns a row group: `length` bytes at `offset` of `uri`, kept in a file. Of all processes of a node one fetches.

    Raises what `storage.read_range` does.
    """
    if not is_kept(folder, group, length):
        with open(os.path.join(folder, f"{group % _LOCKS}.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_kept(folder, group, length):
                data = files.read_range(uri, offset, length)
                if not _keep(folder, group, data):
                    return data
    with open(_place(folder, group), "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _place(folder: str, group: int) -> str:
    return os.path.join(folder, f"{group:07d}")


def _keep(folder: str, group: int, data: memoryview) -> bool:
    temporary = Path(folder, f"{group}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(_place(folder, group))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # somebody else took the room
    return True
