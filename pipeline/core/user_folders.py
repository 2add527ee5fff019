"""Folders of the user: the cache, and what stands in for a home folder that is missing or can't be written.

Containers and schedulers run programs as a user id without an account, without HOME, or with a HOME that isn't theirs.
Then `pwd.getpwuid`, `getpass.getuser` and `Path.home` fail, in Ray and torch, too, unless the variables are set.
"""

import getpass
import logging
import os
import stat
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)
_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # the variables that `getpass.getuser` reads


def cache_folder() -> str:
    """Returns the folder where downloads, ingested data sets and the compiled decoder are kept.

    It is $XDG_CACHE_HOME/image-pipeline, by default ~/.cache/image-pipeline. Where that can't be written it is one in
    the temporary folder, which a warning says once.
    """
    wanted = _wanted_cache()
    place = wanted if can_write(wanted) else os.path.join(temporary_home(), ".cache")
    if place.startswith(_temporary_name()):
        _say_once(place)
    return os.path.join(place, "image-pipeline")


def _wanted_cache() -> str:
    return os.path.abspath(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def account_variables() -> dict[str, str]:
    """Returns the environment variables that libraries need where this user has no account or no home folder.

    HOME where there is none; USER where the user id has no name; and folders for caches where HOME can't be written.
    Empty for an ordinary account. Raises nothing.
    """
    found: dict[str, str] = {}
    if not any(os.environ.get(name) for name in _NAMES):
        try:
            getpass.getuser()
        except (KeyError, OSError, ImportError):  # the user id has no entry in the password file
            found["USER"] = f"user{os.getuid()}"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        found["HOME"] = home = temporary_home()
    if not can_write(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")):
        found["XDG_CACHE_HOME"] = os.path.join(temporary_home(), ".cache")
    if not os.environ.get("MPLCONFIGDIR") and not can_write(os.path.join(home, ".config")):
        found["MPLCONFIGDIR"] = os.path.join(temporary_home(), "matplotlib")
    return found


def can_write(folder: str) -> bool:
    """Returns whether files can be made in a local folder, or the folder itself below one that exists."""
    place = Path(folder)
    with suppress(OSError):
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


@lru_cache(maxsize=1)
def temporary_home() -> str:
    """Returns a folder of this user alone below the temporary folder: always the same, unless somebody else took it."""
    place = _temporary_name()
    with suppress(OSError):
        os.mkdir(place, 0o700)
    with suppress(OSError):
        found = os.lstat(place)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return place
    return tempfile.mkdtemp(prefix=f"{os.path.basename(place)}-", dir=os.path.dirname(place))


def _temporary_name() -> str:
    # Not TMPDIR: a Ray session sets it for its processes, which must find the same folder.
    parent = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    return os.path.join(parent, f"image-pipeline-{os.getuid()}")


@lru_cache(maxsize=1)
def _say_once(place: str) -> None:
    logger.warning(
        "cache: %s, because this user has no home folder that can be written; set XDG_CACHE_HOME to keep it elsewhere",
        place,
    )
