"""Locks of files between processes, which end with the process that holds them."""

import fcntl
import time
from collections.abc import Callable
from typing import IO

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0005, 0.02


def try_lock(file: IO[bytes] | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Returns whether an open file, or its descriptor, is locked now: not if another one holds a lock that excludes it.

    kind: LOCK_EX, or LOCK_SH for a lock that several may hold. It lasts until the file is closed.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(
    file: IO[bytes] | int, seconds: float, kind: int = fcntl.LOCK_EX, is_over: Callable[[], bool] = lambda: False
) -> bool:
    """Returns whether an open file could be locked within so many seconds: a process that holds it may be stopped.

    kind: see `try_lock`. is_over: ends the waiting early.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
    while not try_lock(file, kind):
        if is_over() or time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return True
