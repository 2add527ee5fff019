"""Unpack the pieces of `pack.py` beside this file into a folder. Needs Python and, for CIFAR-10, Pillow and numpy.

python3 unpack.py FOLDER
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path


class Pieces(io.RawIOBase):
    """The pieces, read as one file."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads into a buffer, and returns the number of bytes; 0 at the end."""
        while self._files:
            if count := self._files[0].readinto(buffer):
                return count
            self._files.pop(0).close()
        return 0


def main() -> None:
    """Unpacks, and puts the compiled decoder where the loader looks for it."""
    pieces = checked(Path(__file__).parent)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BufferedReader(Pieces(pieces)), mode="r|") as tar:
        tar.extractall(folder, filter="data")
    with tarfile.open(folder / "program.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    if (folder / "cifar").exists():
        rebuild_cifar(folder)
    place_decoder(folder)


def checked(folder: Path) -> list[Path]:
    """Returns the pieces in their order, after a check that all are there, whole."""
    pieces = []
    for line in (folder / "pieces.sha256").read_text().splitlines():
        expected, name = line.split()
        pieces.append(folder / name)
        if not pieces[-1].exists():
            sys.exit(f"{pieces[-1]} is missing; copy it here")
        if hashlib.sha256(pieces[-1].read_bytes()).hexdigest() != expected:
            sys.exit(f"{pieces[-1]} isn't what was packed; copy it again")
    return pieces


def rebuild_cifar(folder: Path) -> None:
    """Writes cifar.tar, the batches in their published form, from the mosaics."""
    import numpy as np
    from PIL import Image

    with tarfile.open(folder / "cifar.tar", "w") as tar:
        for labels in sorted((folder / "cifar").glob("*.labels")):
            pictures = [np.asarray(Image.open(path)) for path in sorted(labels.parent.glob(f"{labels.stem}-*.webp"))]
            parts = [each.reshape(-1, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3072) for each in pictures]
            classes = np.frombuffer(labels.read_bytes(), np.uint8)[:, None]
            content = np.concatenate([classes, np.concatenate(parts)], axis=1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{labels.stem}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def place_decoder(folder: Path) -> None:
    """Copies the decoder to the name under which this machine keeps its own."""
    code = (
        "from pathlib import Path; from pipeline.core.user_folders import cache_folder;"
        "from pipeline.dataset.native.library import library_name; from pipeline.loader.native.kernel import SOURCE;"
        "print(Path(cache_folder()) / 'native' / library_name(SOURCE))"
    )
    environment = {"PYTHONPATH": f"{folder / 'code'}:{folder / 'site'}", "XDG_CACHE_HOME": str(folder / "cache")}
    named = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, check=True, capture_output=True, text=True
    )
    library = Path(named.stdout.strip())
    library.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "lib" / "decoder.so", library)


if __name__ == "__main__":
    main()
