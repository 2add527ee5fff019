"""Trains on a folder of your images.

uv run examples/own_folder.py photos runs/photos

photos holds one folder for each class: photos/train/cat/1.jpg, photos/val/dog/2.jpg. Without train/ and val/, a tenth
of each class is held out. The same call again continues a run that was interrupted.
"""

import sys
from dataclasses import replace
from typing import Any

from pipeline import ingest, recipes, train


def main(photos: str, run: str, **changes: Any) -> None:
    """Ingests the images, trains what suits them and this machine, and prints the accuracy.

    changes: fields of a ResNet-18's recipe to train with instead, as epochs=20.
    """
    data = ingest(photos, f"{run}-data")
    print(f"{len(data['train'])} training images of {len(data.classes)} classes: {', '.join(data.classes)}")

    result = train(data, run, replace(recipes["imagenette-5"], **changes) if changes else None)
    print(f"top-1 {result['val']['top1']:.1%} of {len(data['val'])} validation images; see {run}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:3])
