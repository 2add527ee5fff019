"""Says whether this machine has what a node needs: Ray, torch, and a decoder that decodes. Ends with 1 if not.

python -m jobs.smoke
"""

import io

import numpy as np
from PIL import Image

from pipeline.loader.decode import CropGeometry, best_decoder, decode_batch


def main() -> None:
    """Decodes one image, and names what did it."""
    import ray
    import torch

    side = 64
    pixels = np.full((side, side, 3), (200, 100, 50), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    name = best_decoder()
    views = CropGeometry.centre_crops(side, side, np.array([[side, side]]))
    seen = decode_batch([out.getvalue()], views, lambda n: "the image", name)
    if np.abs(seen.astype(int) - pixels).max() > 8:
        raise SystemExit(f"the decoder {name} gives other colours than were encoded")
    gpus = torch.cuda.device_count()
    print(f"ray {ray.__version__}, torch {torch.__version__}, {gpus} GPU(s), decoder {name}: well")


if __name__ == "__main__":
    main()
