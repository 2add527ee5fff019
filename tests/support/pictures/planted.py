"""Faults put into a data set on purpose, so that it is known what an evaluation has to find.

python -m tests.support.pictures.planted DATASET OUT.tar  writes CIFAR-10, or another ingested data set, with all three
of them.
"""

import io
import json
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows

DARKNESS = 0.35


@dataclass(frozen=True)
class Planted:
    """What is wrong. wrong: {key of a training image: its true class}; leaked: keys of validation images that are
    among the training images, too, half of them encoded again; dark: the class whose validation images are darkened.
    """

    wrong: dict[str, str]
    leaked: list[str]
    dark: str


def _again(data: bytes, dark: bool = False) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        pixels, kind = image.convert("RGB"), image.format
    out = io.BytesIO()
    changed = ImageEnhance.Brightness(pixels).enhance(DARKNESS) if dark else pixels
    changed.save(out, format=kind or "PNG", **({"quality": 92} if kind == "JPEG" else {}))
    return out.getvalue()


def plant(
    dataset: str, path: Path, share: float = 0.05, leaks: int = 100, train: int = 0, val: int = 0, seed: int = 0
) -> Planted:
    """Writes a tar of SPLIT/CLASS/NAME. share: of training labels made wrong; train, val: most rows, 0 for all."""
    data, generator = load(dataset), np.random.default_rng(seed)
    classes, dark = data.classes, data.classes[int(generator.integers(len(data.classes)))]
    wrong, leaked = dict[str, str](), list[str]()
    with tarfile.open(path, "w") as tar:

        def add(name: str, image: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))

        for split, most in (("train", train), ("val", val)):
            rows = np.arange(min(most or 10**9, data.split(split).rows))
            table = read_rows(dataset, data.split(split), rows)
            suffix = ".jpg" if table["image"][0].as_py()[:2] == b"\xff\xd8" else ".png"
            for number, (label, image) in enumerate(
                zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True)
            ):
                name, shown = f"{number:06d}{suffix}", label
                if split == "train" and generator.random() < share:
                    shown = (label + int(generator.integers(1, len(classes)))) % len(classes)
                    wrong[f"train/{classes[shown]}/{name}"] = classes[label]
                if split == "val" and classes[label] == dark:
                    image = _again(image, dark=True)
                elif split == "val" and len(leaked) < leaks and generator.random() < 2 * leaks / len(rows):
                    leaked.append(f"val/{classes[label]}/{name}")
                    add(f"train/{classes[label]}/leak-{name}", image if len(leaked) % 2 else _again(image))
                add(f"{split}/{classes[shown]}/{name}", image)
    return Planted(wrong, leaked, dark)


def found_of(keys: set[str], planted: set[str]) -> tuple[float, float]:
    """Returns precision and recall."""
    hits = len(keys & planted)
    return hits / max(1, len(keys)), hits / max(1, len(planted))


if __name__ == "__main__":
    truth = plant(sys.argv[1], Path(sys.argv[2]))
    Path(sys.argv[2]).with_suffix(".json").write_text(json.dumps(asdict(truth), indent=1))
