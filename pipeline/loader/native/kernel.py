"""The native decoder: compiled from decode.c on first use, in a few seconds, and kept beside its source."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "decode.c"
# No contraction to fused multiply-adds: all CPUs must give the same pixels.
_FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared")


class KernelUnavailableError(Exception):
    """The native decoder can't be built on this machine. The text says what is missing."""


def load_kernel(source: Path = SOURCE) -> Any:
    """Returns the library as a ctypes.CDLL, compiled unless it is there already.

    Its file's name holds a hash of the sources and the flags, so a changed source is compiled again. Raises
    KernelUnavailableError.
    """
    code = b"".join(path.read_bytes() for path in sorted(source.parent.glob("*.[ch]")))
    name = f"decode-{hashlib.sha256(code + ' '.join(_FLAGS).encode()).hexdigest()[:16]}.so"
    library = source.with_name(name)
    if not library.exists():
        _compile(source, library)
    return ctypes.CDLL(str(library))


def _compile(source: Path, library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise KernelUnavailableError("no C compiler (cc, gcc or clang) is installed")
    if not os.access(library.parent, os.W_OK):
        raise KernelUnavailableError(f"{library.parent} is not writable, so the compiled library can't be kept there")
    # Several processes of a node may compile at once: each writes a file of its own, and the rename is atomic.
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *_FLAGS, "-o", str(unfinished), str(source), "-ljpeg"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        error = next((line for line in lines if "error" in line), lines[-1] if lines else f"status {done.returncode}")
        raise KernelUnavailableError(f"{Path(compiler).name} failed: {error.strip()}")
    for older in library.parent.glob("decode-*.so"):
        older.unlink(missing_ok=True)
    os.replace(unfinished, library)
