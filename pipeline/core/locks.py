"""Locks of files between processes, which end with the process that holds them."""

import fcntl
from typing import IO


def try_lock(file: IO[bytes] | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Returns whether an open file, or its descriptor, is locked now: not if another one holds a lock that excludes it.

    kind: LOCK_EX, or LOCK_SH for a lock that several may hold. It lasts until the file is closed.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
