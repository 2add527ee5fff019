"""The folder of a local Ray session: below /tmp, locked by the process that owns it, removed when that has ended."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.core.errors import ClusterError
from pipeline.core.interrupts import hold_signals
from pipeline.core.locks import try_lock

# The path of a socket has 107 bytes at most, and temporary folders have long names on some machines.
_PARENT = Path("/tmp")
_LOCK = "owner.lock"


@contextmanager
def session_folder() -> Iterator[str]:
    """Yields a new folder for a Ray session, and removes it after the block.

    Folders of this user's sessions that were killed are removed first: their logs would fill the disk in time. A folder
    is in use as long as its owner holds a lock (flock) on a file in it. A process id wouldn't tell: containers that
    share /tmp have numbers of their own.

    Raises ClusterError instead of another error of the block if the folder is gone: Ray fails in
    many ways without it.
    """
    _remove_abandoned()
    # Made under another name, so that nobody finds it before it is locked.
    unlocked = tempfile.mkdtemp(prefix=".ray-", dir=_PARENT)
    folder = str(_PARENT / f"ray-{os.getpid()}-{unlocked.rpartition('-')[2]}")
    lock = os.open(os.path.join(unlocked, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(unlocked, folder)
        yield folder
    except Exception as error:
        if pipeline_error(error) is not None or os.path.exists(os.path.join(folder, _LOCK)):
            raise
        raise ClusterError(
            f"{folder}: the folder of the Ray session was removed while it was in use, perhaps by a cleaner of "
            "temporary files; exempt /tmp/ray-* from that, and repeat the command"
        ) from error
    finally:
        with hold_signals():
            _remove(folder)
            os.close(lock)


def _remove(folder: str) -> None:
    for _ in range(20):  # Ray's processes may still be writing their last lines
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _remove_abandoned() -> None:
    for folder in _PARENT.glob("ray-*-*"):
        with suppress(OSError):  # another process may be removing it, too; or it is another user's
            if folder.lstat().st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Returns whether the folder has a lock that nobody holds. Raises OSError if it has none: then it isn't ours."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        return try_lock(lock)
    finally:
        os.close(lock)
