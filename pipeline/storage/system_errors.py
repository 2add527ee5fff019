"""Errors of local files as one line with the remedy: which file, read or written, and what the system says."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_REMEDIES = {
    errno.ENOENT: "no such file or folder, or it has gone meanwhile; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; give another path",
    errno.EISDIR: "is a folder, not a file; give another path",
    errno.EEXIST: "is there already; give another path",
    errno.ENAMETOOLONG: "a name is too long for this file system; give a shorter path",
    errno.ELOOP: "symbolic links lead round in a circle; correct them or give another path",
    errno.EROFS: "the file system is read-only; give a folder that you may write to",
    errno.EIO: "the disk, or the network that it is behind, fails (input/output error); check it, and run again",
    errno.ESTALE: "the shared folder has changed below this process (stale file handle); mount it anew, and run again",
}


class FileAccessError(StorageError, PermissionError):
    """A local file may not be read or written, in one line with the remedy. Also caught as an OSError.

    number: the system's. line: the message.
    """

    def __init__(self, number: int, line: str) -> None:
        super().__init__(number, line)
        self.errno, self.strerror = number, line  # Python sets them for OSError alone

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def one_line_errors(path: str, writing: bool = False) -> Iterator[None]:
    """Turns an OSError of the block that the user can mend into a FileAccessError, or a StorageError for a full disk.

    FileNotFoundError and others that callers tell apart pass unchanged. An error that crosses Ray keeps its text only,
    and not the name of the file.
    """
    try:
        yield
    except OSError as error:
        raise_if_full(error, path)
        if error.errno in (*_REFUSED, errno.EROFS) and not isinstance(error, StorageError):
            raise FileAccessError(error.errno or 0, describe(error, path, writing) or "") from error
        raise


def raise_if_full(error: OSError, path: str) -> None:
    """Raises StorageError, naming the file that was written, if the disk is full or the quota is used up."""
    if (error.errno or _number_in(error)) in _FULL:
        raise StorageError(describe(error, path) or "") from error


def describe(error: OSError, path: str | None = None, writing: bool | None = None) -> str | None:
    """Returns one line with the file, the reason and the remedy; None for an error that names no file.

    path: of the file, None for the one that the error names. writing: None if it isn't known whether it was written.
    """
    place, number = path or _named_file(error), error.errno or _number_in(error)
    if number in _FULL:
        what = "the disk is full" if number == errno.ENOSPC else "the quota of this user is used up"
        return f"{place or error}: {what}; free some space and run the same command again: what is finished is kept"
    if number in _TOO_MANY:
        return (
            f"{place or 'files'}: too many open files; raise the limit (ulimit -n 65536) and run the same command again"
        )
    if place is None and number in (*_REFUSED, errno.EROFS):
        return f"{error.strerror or error}: not allowed; check the permissions of the files and folders that are named"
    if place is None:
        return None
    if number in _REFUSED:
        return _refused(place, writing)
    remedy = _REMEDIES.get(number)
    return f"{place}: {remedy}" if remedy else None


def _refused(place: str, writing: bool | None) -> str:
    if writing is None:  # an existing file that may be read was to be written
        writing = os.access(place, os.R_OK) or (
            not os.path.lexists(place) and os.access(os.path.dirname(place), os.X_OK)
        )
    if writing:
        return f"{place}: may not be written by this user (permission denied); give a folder that you may write to"
    return f"{place}: may not be read by this user (permission denied); allow it (chmod a+rX), or leave it out"


def _number_in(error: OSError) -> int:
    found = re.match(r"\[Errno (\d+)\]", str(error))
    return int(found.group(1)) if found else 0


def _named_file(error: OSError) -> str | None:
    if isinstance(error.filename, str | bytes) and os.path.isabs(os.fsdecode(error.filename)):
        return os.fsdecode(error.filename)
    if isinstance(error.filename, str) and error.filename and "\n" not in error.filename and len(error.filename) < 4096:
        return error.filename if os.path.lexists(error.filename) else None
    quoted = re.search(r"'(/[^'\n]+)'", str(error))  # pyarrow's errors
    return quoted.group(1) if quoted else None
