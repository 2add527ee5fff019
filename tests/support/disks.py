"""A disk that is full, for tests of what is told then."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def full_disk(place: Path) -> Iterator[Path]:
    """Mounts a disk at `place` that has no free page, but room for names, and a file `filler`. Skips without root."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a disk can't be mounted here")
    try:
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
