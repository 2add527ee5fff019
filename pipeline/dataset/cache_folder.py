"""A folder of a stated size on a node's disk, in which the processes of the node keep files that they can fetch again.

One lock file orders all changes and holds the sum of the files' sizes. A file counts in full from the moment it is
claimed; it appears under its name when it is complete. A process that is killed leaves a claim that nobody holds: the
next one that wants the file takes it over. Whenever a process begins to use the folder, such claims are removed, and
the sum is counted anew. Nobody waits for another process longer than PATIENCE_SECONDS: it may hang, or be stopped.
"""

import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

from pipeline.core.errors import RecipeError, StorageError
from pipeline.core.locks import lock_within, try_lock
from pipeline.storage import files

RESERVED_BYTES = 2 << 30  # of the disk, left free for others
PATIENCE_SECONDS = 30.0  # row groups are fetched in seconds, and the folder is changed in milliseconds
_CLAIMED = ".tmp"  # ends the name of a file that isn't complete
_SUBFOLDER = re.compile("[0-9a-f]{16}")  # see `CacheFolder.subfolder`
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

Refusal = Literal["kept", "claimed", "no room"]
"""Why a file can't be claimed: it is there, another thread or process is writing it, or the folder has no room."""


@dataclass(frozen=True)
class CacheFolder:
    """A folder for files that can be fetched again, shared by the processes of a node."""

    path: str
    """Absolute; the files lie one level below, in a subfolder for each content."""
    max_bytes: int | None = None
    """Most bytes of all files together; None for what the disk has, except RESERVED_BYTES, which always stay free."""

    def subfolder(self, content: str) -> str:
        """Returns the absolute path of the subfolder for a content, such as the checksums of its files."""
        return os.path.join(self.path, hashlib.sha256(content.encode()).hexdigest()[:16])

    def has_room(self, num_bytes: int) -> bool:
        """Whether there is room for so many bytes now. Makes the folder; raises StorageError if it can't be."""
        self._prepare()
        with open(self._lock_path, "rb") as file:
            return self._fits(_sum_in(file), num_bytes)

    def claim(self, path: str, num_bytes: int) -> "Claim | Refusal":
        """Returns a claim to write the file at `path` with `num_bytes` bytes, or why there is none."""
        self._prepare()
        with self._locked() as lock:
            if size_of(path) == num_bytes:
                return "kept"
            _remove(lock, path)  # one that was cut
            temporary = path + _CLAIMED
            left_behind = size_of(temporary)
            used = _sum_in(lock)
            if not left_behind and not self._fits(used, num_bytes):
                return "no room"
            # First the sum, then the file: a process that is killed in between leaves a sum that is too large.
            _write_sum(lock, used - (left_behind or 0) + num_bytes)
            file = _open_for_writing(temporary)  # the claim lasts as long as it is open
            if not try_lock(file):
                file.close()
                _write_sum(lock, used)
                return "claimed"
            os.truncate(file.fileno(), num_bytes)
            return Claim(self, path, file)

    def remove(self, paths: list[str]) -> None:
        """Removes files that are complete; one that isn't there is no error."""
        with self._locked() as lock:
            for path in paths:
                _remove(lock, path)

    def clear_others(self, subfolder: str) -> None:
        """Removes the files of the subfolders that nobody uses (`use`), but not those of `subfolder`."""
        with self._locked() as lock:
            for other in _subfolders(self.path):
                if other == subfolder:
                    continue
                with _open_users(other) as users:
                    if try_lock(users):
                        for path, _ in _files(other):
                            _remove(lock, path)

    def _prepare(self) -> None:
        if not os.path.exists(self._lock_path):  # somebody has removed the folder since
            _count_once.cache_clear()
        _count_once(self, os.getpid())

    def _fits(self, used: int, num_bytes: int) -> bool:
        if self.max_bytes is not None and used + num_bytes > self.max_bytes:
            return False
        return shutil.disk_usage(self.path).free - num_bytes > RESERVED_BYTES

    @property
    def _lock_path(self) -> str:
        return os.path.join(self.path, "lock")

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with _open_for_writing(self._lock_path) as file:
            if not _lock_in_time(file, self._lock_path):
                raise TimeoutError(errno.ETIMEDOUT, f"another process holds its lock for {PATIENCE_SECONDS:g} s")
            yield file


def resolve_cache(folder: str | None, size: str | int | None = None) -> CacheFolder | None:
    """Returns the cache in a folder on each node; None for no folder, and for the size 0, which keeps nothing.

    size: such as "20GB" or "500 MB", or bytes; None for what the disk has. Raises RecipeError for a URI, for a size
    that isn't one, and for a size without a folder.
    """
    num_bytes = None if size is None else parse_size(size)
    if not folder:
        if num_bytes:
            raise RecipeError(f"cache-size={size} needs a folder; give --cache DIR on a disk of each node, too")
        return None
    if not files.is_local(place := files.absolute(folder)):
        raise RecipeError(f"cache={folder} must be a folder on a disk of each node, not in object storage")
    return None if num_bytes == 0 else CacheFolder(place, num_bytes)


def parse_size(size: str | int) -> int:
    """Returns a size in bytes: of "20GB", "1.5 TB", "500MB" (powers of 1,000), or bytes. Raises RecipeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", str(size).strip())
    if not found or found[2].upper() not in _UNITS:
        raise RecipeError(f"cache-size={size}: no such size; give a number and MB, GB or TB, such as 20GB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def size_text(num_bytes: float) -> str:
    """Returns a size as `parse_size` reads it, rounded up to two digits: "450MB", "1.5GB"."""
    unit, factor = next(item for item in reversed(_UNITS.items()) if num_bytes >= item[1] or item[1] == 1)
    value = num_bytes / factor
    step = 10 ** max(-1, math.floor(math.log10(max(value, 1))) - 1)
    return f"{math.ceil(value / step - 1e-9) * step:g}{unit or 'B'}"


class Claim:
    """The right to write one file, whose room is reserved. It ends by `keep`, by `drop`, or with the process."""

    def __init__(self, folder: CacheFolder, path: str, file: IO[bytes]) -> None:
        self._folder, self._path, self._file = folder, path, file

    def keep(self, data: memoryview) -> bool:
        """Writes the file and gives it its name. Returns False, and leaves nothing, if the disk is full.

        Raises OSError if the disk fails, or another process holds the folder's lock.
        """
        return self.keep_parts([(0, data)])

    def keep_parts(self, parts: Iterable[tuple[int, memoryview]], lasting: bool = False) -> bool:
        """Does what `keep` does with the bytes at some offsets, as they come. Leaves nothing if `parts` raises.

        lasting: whether the bytes are on the disk before the file gets its name, for readers who don't check them:
        after a power cut they would find zeros.
        """
        try:
            for offset, data in parts:
                write_all(self._file.fileno(), data, offset)
            if lasting:
                os.fsync(self._file.fileno())
        except BaseException as error:
            self.drop()
            if not isinstance(error, OSError) or error.errno not in _FULL:
                raise
            return False  # something else has taken the room
        with self._file, self._folder._locked():
            os.replace(self._path + _CLAIMED, self._path)
        return True

    def drop(self) -> None:
        """Gives the room back, if need be later: as of a process that was killed."""
        with self._file, suppress(TimeoutError), self._folder._locked() as lock:
            _remove(lock, self._path + _CLAIMED)


def wait_for_claim(path: str, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Waits until nobody writes the file at `path` any more: it is there then, or its writer failed or died.

    Returns False if somebody still does after PATIENCE_SECONDS, and at once where that was so before; such a process
    hangs, or is stopped. is_over: ends the waiting early.
    """
    try:
        with open(path + _CLAIMED, "rb") as file:
            return _lock_in_time(file, path, fcntl.LOCK_SH, is_over)
    except FileNotFoundError:
        return True


def wait_while_written(path: str) -> bool:
    """Waits as `wait_for_claim` does, but for as long as the file is being written to, which may take minutes.

    Returns False if another process has claimed it, and has written nothing for PATIENCE_SECONDS.
    """
    with suppress(FileNotFoundError), open(path + _CLAIMED, "rb") as file:
        while not lock_within(file, 1.0, fcntl.LOCK_SH):
            if time.time() - os.fstat(file.fileno()).st_mtime > PATIENCE_SECONDS:
                return False
    return True


def _lock_in_time(
    file: IO[bytes], path: str, kind: int = fcntl.LOCK_EX, is_over: Callable[[], bool] = lambda: False
) -> bool:
    """Returns whether a file is locked now. Who was waited for in vain isn't waited for again: it costs time once."""
    is_locked = lock_within(file, 0.0 if path in _given_up else PATIENCE_SECONDS, kind, is_over)
    if is_locked:
        _given_up.discard(path)
    elif not is_over():
        _given_up.add(path)
    return is_locked


_given_up: set[str] = set()  # paths of what another process holds locked for too long


def use(subfolder: str) -> None:
    """Makes a subfolder, and marks it as used for as long as this process lives. Raises OSError."""
    place = subfolder, os.getpid()
    if place not in _in_use or not os.path.isdir(subfolder):
        os.makedirs(subfolder, exist_ok=True)
        users = _open_users(subfolder)
        if not _lock_in_time(users, subfolder, fcntl.LOCK_SH):
            raise TimeoutError(errno.ETIMEDOUT, f"another process clears it for {PATIENCE_SECONDS:g} s")
        _in_use[place] = users


_in_use: dict[tuple[str, int], IO[bytes]] = {}  # {(subfolder, process): its mark}; a forked child makes its own


def size_of(path: str) -> int | None:
    """Returns the size of a file in bytes; None if it isn't there, or in a folder that can't be used."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def write_all(file: int, data: memoryview, offset: int = 0) -> None:
    """Writes all bytes of `data` to a file, from `offset` on."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


@lru_cache(maxsize=64)
def _count_once(folder: CacheFolder, process: int) -> None:
    """Makes the folder and counts its files, once in each process: the sum may be too large after a kill."""
    try:
        os.makedirs(folder.path, exist_ok=True)
        if not os.access(folder.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with folder._locked() as lock:
            found = [file for each in _subfolders(folder.path) for file in _files(each)]
            _write_sum(lock, sum(size for path, size in found if not _remove_abandoned(path)))
    except OSError as error:
        raise StorageError(
            f"cache={folder.path}: can't be written on this node ({error.strerror}); give a folder on a disk of its own"
        ) from error


def _remove_abandoned(path: str) -> bool:
    """Removes a claimed file whose writer was killed. Returns whether it was one."""
    if not path.endswith(_CLAIMED):
        return False
    with open(path, "rb") as file:
        if not try_lock(file):
            return False
        os.unlink(path)
    return True


def _open_for_writing(path: str) -> IO[bytes]:
    """Opens a file without changing what is in it; "ab" would append whatever is written, wherever."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _open_users(subfolder: str) -> IO[bytes]:
    return Path(subfolder, "users").open("ab")  # locked as long as it is open


def _subfolders(path: str) -> list[str]:
    """Returns the cache's own: a disk has a `lost+found`, too, and a folder may hold more."""
    with os.scandir(path) as entries:
        return [entry.path for entry in entries if _SUBFOLDER.fullmatch(entry.name) and entry.is_dir()]


def _files(subfolder: str) -> list[tuple[str, int]]:
    """Returns (path, bytes) of the files that are kept, or claimed."""
    with os.scandir(subfolder) as entries:
        return [
            (entry.path, entry.stat().st_size) for entry in entries if entry.name.removesuffix(_CLAIMED).isdecimal()
        ]


def _remove(lock: IO[bytes], path: str) -> None:
    if size := size_of(path):
        os.unlink(path)
        _write_sum(lock, _sum_in(lock) - size)


def _sum_in(lock: IO[bytes]) -> int:
    return int.from_bytes(os.pread(lock.fileno(), 8, 0), "little")


def _write_sum(lock: IO[bytes], num_bytes: int) -> None:
    os.pwrite(lock.fileno(), max(0, num_bytes).to_bytes(8, "little"), 0)
