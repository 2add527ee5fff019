"""Native code: C sources are compiled on first use, in a few seconds, and kept in a cache of this machine."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.user_folders import cache_folder, temporary_home

_SHARED = Path(__file__).parent  # headers that sources in other folders include, too
# Where Homebrew and MacPorts install libjpeg-turbo, and compilers don't look by themselves.
_LIBRARIES = ("/opt/homebrew/opt/jpeg-turbo", "/usr/local/opt/jpeg-turbo", "/opt/local")
# No contraction to fused multiply-adds: all CPUs must give the same pixels.
_FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared")


class KernelUnavailableError(Exception):
    """Native code can't be built on this machine. The text says what is missing."""


def load_library(source: Path, *libraries: str) -> Any:
    """Returns a C source as a ctypes.CDLL, compiled unless it is there already.

    libraries: to link with, such as "jpeg".

    It lies in `cache_folder()`, never beside its source, which other machines may share. Its name holds a hash of the
    sources, the flags, the architecture and the C library, so that a changed source or another machine has a file of
    its own; one that can't be loaded is compiled again. Raises KernelUnavailableError.
    """
    library = Path(cache_folder()) / "native" / library_name(source)
    if not _make_folder(library.parent):
        library = Path(temporary_home()) / "native" / library.name
    with suppress(OSError):  # not there, or made by another machine that shares this cache
        return ctypes.CDLL(str(library))
    _compile(source, library, libraries)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelUnavailableError(f"{library}: compiled here, but it can't be loaded ({error})") from error


def library_name(source: Path) -> str:
    """Returns the name of the compiled file."""
    files = {*source.parent.glob("*.[ch]"), *_SHARED.glob("*.h")}
    code = b"".join(path.read_bytes() for path in sorted(files))
    machine = f"{' '.join(_FLAGS)} {platform.system()} {platform.machine()} {_c_library()}"
    return f"{source.stem}-{hashlib.sha256(code + machine.encode()).hexdigest()[:16]}.so"


def _c_library() -> str:
    with suppress(ValueError, OSError, AttributeError):  # a name that only GNU's C library knows
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return ""


def compilers() -> list[list[str]]:
    """Returns the commands of this machine's C compilers: the one of the variable CC first, then cc, gcc and clang."""
    asked = shlex.split(os.environ.get("CC", ""))
    found = [asked] if asked and shutil.which(asked[0]) else []
    return found + [[path] for path in dict.fromkeys(map(shutil.which, ("cc", "gcc", "clang"))) if path]


def _compile(source: Path, library: Path, libraries: tuple[str, ...]) -> None:
    """Compiles with the first compiler that can; all give the same pixels. Raises what the first one said."""
    failures = []
    for compiler in compilers():
        try:
            _compile_with(compiler, source, library, libraries)
            return
        except KernelUnavailableError as error:
            failures.append(error)
    raise failures[0] if failures else KernelUnavailableError("no C compiler (cc, gcc or clang) is installed")


def _compile_with(compiler: list[str], source: Path, library: Path, libraries: tuple[str, ...]) -> None:
    if not _make_folder(library.parent):
        raise KernelUnavailableError(f"{library.parent} can't be written, so the compiled library can't be kept")
    places = [folder for folder in _LIBRARIES if os.path.exists(f"{folder}/include/jpeglib.h")]
    search = [flag for folder in places for flag in (f"-I{folder}/include", f"-L{folder}/lib")]
    try:
        # Several processes of a node may compile at once: each writes a file of its own, and the rename is atomic. A
        # compiler that is ended, as by Ctrl-C, leaves its own temporary files, which must not stay.
        with tempfile.TemporaryDirectory(prefix=f"{library.stem}.", suffix=".tmp", dir=library.parent) as folder:
            unfinished = os.path.join(folder, library.name)
            linked = [f"-l{name}" for name in libraries]
            command = [*compiler, *_FLAGS, *search, "-o", unfinished, str(source), *linked]
            environment = {**os.environ, "TMPDIR": folder}
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                error = next((each for each in lines if "error" in each), lines[-1] if lines else str(done.returncode))
                raise KernelUnavailableError(f"{Path(compiler[0]).name} failed: {error.strip()}")
            os.replace(unfinished, library)
    except OSError as error:
        raise KernelUnavailableError(f"{library}: {error.strerror}") from error


def _make_folder(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
