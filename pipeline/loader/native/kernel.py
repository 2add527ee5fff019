"""The native decoder of crops: decode.c, which needs libjpeg-turbo."""

from pathlib import Path
from typing import Any

from pipeline.dataset.native.library import load_library

SOURCE = Path(__file__).parent / "decode.c"


def load_kernel(source: Path = SOURCE) -> Any:
    """Returns the decoder as a ctypes.CDLL, compiled unless it is there already. Raises KernelUnavailableError."""
    return load_library(source, "jpeg")
