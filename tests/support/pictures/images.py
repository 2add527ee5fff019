"""Small real images: pictures, folders of classes, archives; and the archives of real images beside the project."""

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources import Index

if TYPE_CHECKING:
    import torch

SHARED = Path(__file__).parents[4] / "shared" / "data"


def shared(name: str) -> str:
    """Returns the path of a real image archive beside the project; skips the test, saying so, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout (../shared/data)")
    return str(path)


def picture(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    """Returns coloured noise, smooth enough to survive an encoding."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int, height: int = 32, width: int = 32) -> bytes:
    """Returns the picture as a JPEG."""
    out = io.BytesIO()
    picture(seed, height, width).save(out, format="JPEG", quality=90)
    return out.getvalue()


def make_tree(root: Path, per_class: int = 6, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Writes SPLIT/CLASS/NAME.jpg for three classes and returns `root`."""
    for number, split in enumerate(splits):
        for label, name in enumerate(("ant", "bee", "cow")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(per_class):
                (folder / f"{image:03d}.jpg").write_bytes(jpeg(1000 * number + 100 * label + image, 20 + image, 30))
    return root


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Writes a tar of these files."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Writes files below `root` by their relative names, and returns `root`."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree_files(root: Path) -> dict[str, bytes]:
    """Returns {relative name: bytes} of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def sample_bytes(samples: pa.Table) -> list[bytes]:
    """Returns the stored bytes of each row of an index table, in its order, as ingest reads them."""
    found = {row: bytes(data) for row, data in gather(samples)}
    return [found[row] for row in range(samples.num_rows)]


def webdataset(root: Path, label: str = "{}") -> Path:
    """Writes two WebDataset shards of six images for each of train and val, and returns `root`.

    label: the text of a .cls file; {} stands for the number of the class.
    """
    root.mkdir(parents=True)
    for split in ("train", "val"):
        for shard in range(2):
            files = {}
            for sample in range(6):
                files[f"{sample:04d}.jpg"] = jpeg(100 * shard + sample + (50 if split == "val" else 0))
                files[f"{sample:04d}.cls"] = label.format(sample * 2).encode()
                files[f"{sample:04d}.json"] = b"{}"
            make_tar(root / f"imagenet-{split}-{shard:06d}.tar", files)
    return root


def rows_of(index: Index) -> dict[str, list[tuple[str, str, bytes]]]:
    """Returns {split: (key, class name, stored bytes) of each row} of an index of a source."""
    found = {}
    for split, table in index.splits.items():
        names = [index.classes[label] for label in table["label"].to_pylist()]
        found[split] = list(zip(table["key"].to_pylist(), names, sample_bytes(table), strict=True))
    return found


IMAGENET_PHOTOS = "imagenet-fullsize-160.tar"


def imagenet_photos(size_px: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Returns photographs of ImageNet, float32 [N, 3, S, S] in [0, 1], and their classes, int64 [N], for ImageNet's
    networks: centre crops of 7/8 of the shorter side. Skips the test where they are absent."""
    import torch
    from timm.data.imagenet_info import ImageNetInfo
    from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

    names = ImageNetInfo().label_names()
    images, classes = [], []
    with tarfile.open(shared(IMAGENET_PHOTOS)) as tar:
        for member in [each for each in tar if each.isfile()][::3]:
            image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
            shrunk = resize(image, [size_px * 8 // 7], interpolation=Image.Resampling.BICUBIC)
            images.append(pil_to_tensor(center_crop(shrunk, [size_px])) / 255)
            classes.append(names.index(member.name.split("/")[1]))
    return torch.stack(images), torch.tensor(classes)
