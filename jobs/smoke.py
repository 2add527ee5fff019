"""Checks that this machine can be a node of the cluster: Ray and torch import, and the JPEG decoder works.

Run `python -m jobs.smoke`. Exit status 1 if not.
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import io

import numpy as np
from PIL import Image

from pipeline.core.shares import counted
from pipeline.loader.decode import CropGeometry, best_decoder, decode_batch


def main() -> None:
    """Decodes one image, compares its colours, and prints the versions."""
    import ray
    import torch

    side = 64
    pixels = np.full((side, side, 3), (200, 100, 50), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    name = best_decoder()
    views = CropGeometry.centre_crops(side, side, np.array([[side, side]]))
    decoded = decode_batch([out.getvalue()], views, lambda n: "the image", name)
    if np.abs(decoded.astype(int) - pixels).max() > 8:
        raise SystemExit(f"the decoder {name} decodes other colours than were encoded")
    gpus = torch.cuda.device_count()
    print(f"ray {ray.__version__}, torch {torch.__version__}, {counted(gpus, 'GPU')}, decoder {name} works")


if __name__ == "__main__":
    main()
