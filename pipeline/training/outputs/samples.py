"""Pictures of what a run trains on: images of each class, and a batch as the network sees it."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.keyed_random import Epochs
from pipeline.core.thread_warnings import thread_warnings
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import load_index
from pipeline.loader.normalise import Normalise
from pipeline.loader.sample_order import Rows, training_order
from pipeline.loader.samplers import TrainSampler, training_split
from pipeline.loader.streaming.threads import local_batches
from pipeline.loader.transform import training_transform
from pipeline.models.batch_transforms import transform_batch
from pipeline.training.job import TrainJob

BATCH_IMAGES, CLASS_IMAGES, MAX_CLASSES = 32, 6, 24
_COLUMNS, _SIDE_PX, _CLASS_SIDE_PX = 8, 96, 72
Pixels = npt.NDArray[np.uint8]


class _FirstRows(TrainSampler):
    """The first rows of the first batch. An even number: MixUp and CutMix mix neighbours."""

    def rows(self, index: int) -> Rows:
        return super().rows(index)[:BATCH_IMAGES]

    def epochs(self, index: int) -> Epochs:
        epochs = super().epochs(index)
        return epochs if isinstance(epochs, int) else epochs[:BATCH_IMAGES]


def sample_pictures(job: TrainJob, data: Manifest) -> dict[str, Any]:
    """Returns "batch", a picture of augmented images, and "classes": name, rows and a picture of each of some classes.

    Pictures are data URIs. They depend on the run's identity alone.
    """
    return {"batch": sheet(augmented_images(job, data), _COLUMNS, _SIDE_PX), "classes": class_pictures(job, data)}


def augmented_images(job: TrainJob, data: Manifest) -> list[Pixels]:
    """Returns uint8 [S, S, 3]: the first images of the first training batch, after every augmentation.

    What the network sees is normalised; here it is converted back. Images that can't be used are left out.
    """
    recipe, parts = job.recipe, training_split(job.dataset, data, job.recipe, job.hold_out)
    order = training_order(recipe, parts.train_row_groups, job.seed, parts.expected)
    sampler = _FirstRows(order, num_steps=1, first_step=0, world_size=1, rank=0)
    transform = training_transform(recipe, job.seed, job.decoder)
    batch = next(local_batches(job.dataset, data.split("train"), sampler, transform, "quarantine"))
    normalise = Normalise(recipe.pixel_mean, recipe.pixel_std)
    with torch.no_grad():
        seen = transform_batch(batch, normalise, recipe.augment, job.seed).images
        pixels = ((seen - normalise.shift) / normalise.scale).round().clamp(0, 255).to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).contiguous().numpy())


def class_pictures(job: TrainJob, data: Manifest) -> list[dict[str, Any]]:
    """Returns name, rows and a picture of some training images, of each class; of many classes evenly spaced ones."""
    split = data.split("train")
    labels = load_index(job.dataset, split).label
    count = min(MAX_CLASSES, len(data.classes))
    shown = np.linspace(0, len(data.classes) - 1, count).round().astype(int).tolist()
    rows = {label: np.flatnonzero(labels == label) for label in shown}
    wanted = np.concatenate([found[:CLASS_IMAGES] for found in rows.values()])
    table = read_rows(job.dataset, split, np.sort(wanted), ("image",))
    images = dict(zip(np.sort(wanted).tolist(), table["image"].to_pylist(), strict=True))
    return [
        {
            "name": data.classes[label],
            "rows": len(found),
            "picture": sheet([_decoded(images[row]) for row in found[:CLASS_IMAGES].tolist()], 6, _CLASS_SIDE_PX),
        }
        for label, found in rows.items()
        if len(found)
    ]


def _decoded(data: bytes) -> Pixels:
    """Returns uint8 [H, W, 3]; a grey image for bytes that have changed since ingest and can't be decoded."""
    from PIL import Image

    try:
        with thread_warnings("ignore"), Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * _CLASS_SIDE_PX, 2 * _CLASS_SIDE_PX))  # a JPEG is decoded at a smaller scale
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return np.full((8, 8, 3), 128, dtype=np.uint8)


def sheet(images: list[Pixels], columns: int, side_px: int) -> str:
    """Returns a data URI of a picture with the images in rows of `columns`, each in a square of `side_px`."""
    from PIL import Image

    gap = 2
    height = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side_px + gap) - gap, max(1, height) * (side_px + gap) - gap), (128, 128, 128))
    for number, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        scale = side_px / max(image.size)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
        resized = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
        left, top = (number % columns) * (side_px + gap), (number // columns) * (side_px + gap)
        page.paste(resized, (left + (side_px - size[0]) // 2, top + (side_px - size[1]) // 2))
    out = io.BytesIO()
    page.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
