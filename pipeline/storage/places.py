"""Folders that a user gives: can files be written there, whose are they, and which existing name is nearest?"""

import difflib
import errno
import json
import os
import posixpath
import tempfile
from typing import Any

from pipeline.core.errors import StorageError
from pipeline.storage import files
from pipeline.storage.uris import absolute, basename, is_local

_PAGE = 4096  # bytes: the least that a file with content takes
_CHECK_PREFIX = ".check-"


def is_passing(name: str) -> bool:
    """Whether a file with this name lies in a folder only while another process checks it, or was killed doing so.

    Where a file can't be made without a name (NFS): `check_folder`'s own, or what NFS calls a deleted file in use.
    """
    return name.startswith((_CHECK_PREFIX, ".nfs"))


def check_folder(uri: str, field_name: str) -> None:
    """Raises StorageError at once unless files can be written below the folder `uri`, which needn't exist yet.

    field_name: the setting that `uri` was given for, for the message. Leaves nothing behind. In object storage it asks
    whether the bucket answers; whether writing is allowed, the first write shows.
    """
    uri = place = absolute(uri)
    if not is_local(uri):
        files.kind(uri)
        return
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    below = "" if place == uri else f"{place} "
    if not os.path.isdir(place):
        raise StorageError(f"{field_name}={uri}: {below}is a file, not a folder; give another path")
    try:
        # Without a name, where the file system can: others see nothing of it, and a kill leaves nothing behind.
        with tempfile.TemporaryFile(prefix=_CHECK_PREFIX, dir=place, buffering=0) as file:
            file.write(bytes(_PAGE))  # a full disk may have room for an empty file
    except OSError as error:
        raise StorageError(f"{field_name}={uri}: {below or 'it '}{_refusal(error)}") from error
    _check_name(uri, field_name)


def _check_name(uri: str, field_name: str) -> None:
    try:
        os.path.lexists(uri) or os.stat(uri)
    except FileNotFoundError:
        return
    except OSError as error:  # a name of more than 255 bytes
        raise StorageError(f"{field_name}={uri[:80]}...: {error.strerror}; give a shorter path") from error


def _refusal(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "lies on a read-only file system; give a folder that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "has no room left: the disk is full; free some space, or give a folder on another disk"
    return f"can't be written ({error.strerror}); give a folder that you may write to"


def nearest(uri: str) -> str:
    """Returns "; did you mean NAME?" with the existing name nearest to a path that doesn't exist, or "".

    Only local paths are looked up: the first part that is missing is compared with what lies beside it.
    """
    if not is_local(uri):
        return ""
    place = absolute(uri)
    while not os.path.isdir(os.path.dirname(place)) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    try:
        names = os.listdir(os.path.dirname(place))
    except OSError:
        return ""
    found = difflib.get_close_matches(basename(place), names, n=1, cutoff=0.7)
    if not found or found[0] == basename(place):
        return ""
    return f"; did you mean {posixpath.join(os.path.dirname(place), found[0])}?"


def remove_if_empty(folder: str) -> None:
    """Removes a local folder in which nothing lies any more. In stores there are no empty folders."""
    if is_local(folder) and os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)


def claim_folder(uri: str, identity: dict[str, Any], indent: int | None = 1, end: str = "") -> dict[str, Any]:
    """Writes a JSON file at `uri` unless there is one, and returns the identity that the file holds.

    Of several processes that call it at a time one writes, and all get what that one wrote. A folder is free for the
    caller, or has been its own before, if what it gets equals `json.loads(json.dumps(identity))`; otherwise it should
    raise an error that shows both. indent, end: the layout of the file, as of `json.dumps`. Raises StorageError if the
    file is damaged.
    """
    data = (json.dumps(identity, indent=indent) + end).encode()
    if files.write_once(uri, data):
        claimed: dict[str, Any] = json.loads(data)
        return claimed
    return files.read_record(uri, dict[str, Any], "restore the file, or give another folder")
