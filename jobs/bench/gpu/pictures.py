"""Images of the sections: CIFAR-10 and photographs from archives that the user names, else generated ones.

Data sets are ingested without Ray, by the functions that its tasks call, so a bare machine gets the bytes that an
ingest writes.
"""

import contextlib
import io
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from jobs.bench.gpu.child import Settings
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.core.errors import SourceError
from pipeline.core.progress import silent
from pipeline.dataset.manifest import is_dataset
from pipeline.dataset.parquet import parquet_bytes
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings, ShardPlan
from pipeline.ingestion.publish import publish
from pipeline.ingestion.quarantine import quarantine_table
from pipeline.ingestion.run import planned_ingest
from pipeline.ingestion.shard_task import Receipt, ShardContext, make_shard
from pipeline.ingestion.sources import Source
from pipeline.ingestion.target import QUARANTINE_NAME
from pipeline.storage import files

Pixels = npt.NDArray[np.uint8]
_CIFAR_ROWS = {"train": 50_000, "val": 10_000}
_GENERATED_ROWS = {"train": 20, "val": 10}
_SMALL_BATCHES = {"data_batch_1.bin": "train", "test_batch.bin": "val"}
_RECORD = 1 + 3 * 32 * 32
_PEEK = 8  # members of an archive that tell what it holds


def recognise(paths: Sequence[str]) -> tuple[str, str]:
    """Returns the archive of CIFAR-10 and the tar of photographs among `paths`; "" for one that isn't there.

    Raises SourceError, with the path, for a file that is missing or neither of both.
    """
    found = {"cifar": "", "photos": ""}
    for path in paths:
        kind = _kind(path)
        if found[kind]:
            raise SourceError(f"--data {path}: a second archive of this kind, beside {found[kind]}; name one of them")
        found[kind] = os.path.abspath(path)
    return found["cifar"], found["photos"]


def _kind(path: str) -> str:
    try:
        with tarfile.open(path, "r|*") as tar:
            for _, member in zip(range(_PEEK), tar, strict=False):
                if member.name.endswith("data_batch_1.bin"):
                    return "cifar"
                if member.name.lower().endswith((".jpg", ".jpeg")):
                    return "photos"
    except FileNotFoundError:
        raise SourceError(f"--data {path}: no such file; name an archive, or none for generated images") from None
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"--data {path}: no archive that can be read ({error})") from None
    raise SourceError(
        f"--data {path}: neither CIFAR-10 in its binary form nor a tar of JPEGs; --data takes cifar-10-binary.tar.gz "
        "and a tar of photographs"
    )


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallImages:
    """The images of one split. pixels: uint8 [N, 3, 32, 32]. labels: int64 [N]."""

    pixels: Pixels
    labels: npt.NDArray[np.int64]


def cifar(settings: Settings) -> dict[str, SmallImages]:
    """Returns the splits train and val of CIFAR-10, or of generated images of ten classes."""
    splits: dict[str, list[bytes]] = {"train": [], "val": []}
    for path in sorted(_cifar_folder(settings).rglob("*.bin")):
        splits["val" if path.name.startswith("test") else "train"].append(path.read_bytes())
    found = {}
    for name, parts in splits.items():
        records = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, _RECORD)
        pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
        found[name] = SmallImages(pixels, records[:, 0].astype(np.int64))
    return found


def cifar_dataset(settings: Settings) -> str:
    """Returns the path of the same images as an ingested data set."""
    source = Source(str(_cifar_folder(settings)), md5="any")
    return _ingested(source, os.path.join(settings.folder, "cifar"), shard_bytes=4 << 20)


def is_original_cifar(settings: Settings) -> bool:
    """Returns whether the images are CIFAR-10's, all of them."""
    return bool(settings.cifar) and {name: len(part.labels) for name, part in cifar(settings).items()} == _CIFAR_ROWS


def _cifar_folder(settings: Settings) -> Path:
    """Returns the folder with the batches in their binary form, unpacked or made once for all sections."""
    folder = Path(settings.folder, "cifar-batches")
    if folder.exists():
        return folder
    partial_folder = Path(f"{folder}.part")
    partial_folder.mkdir(exist_ok=True)
    if settings.cifar:
        with tarfile.open(settings.cifar, "r|*") as tar:
            for member in tar:
                if member.name.endswith(".bin") and (content := tar.extractfile(member)):
                    name = os.path.basename(member.name)
                    if not settings.small:
                        (partial_folder / name).write_bytes(content.read())
                    elif name in _SMALL_BATCHES:
                        rows = _GENERATED_ROWS[_SMALL_BATCHES[name]]
                        (partial_folder / name).write_bytes(content.read(rows * _RECORD))
    else:
        for name, split in _SMALL_BATCHES.items():
            (partial_folder / name).write_bytes(_generated_batch(split, _GENERATED_ROWS[split]))
    partial_folder.rename(folder)
    return folder


def _generated_batch(split: str, rows: int) -> bytes:
    """Returns records of smooth coloured noise; the class decides the colour."""
    draws = np.random.default_rng(1 if split == "train" else 2)
    colours = np.random.default_rng(0).integers(40, 216, (10, 3))
    records = []
    for number in range(rows):
        noise = draws.normal(0, 30, (8, 8, 3)).repeat(4, 0).repeat(4, 1) + colours[number % 10]
        pixels = noise.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
        records.append(bytes([number % 10]) + pixels.tobytes())
    return b"".join(records)


# --- photographs -------------------------------------------------------------------------------------------------


def photographs(settings: Settings) -> list[bytes]:
    """Returns JPEGs: those of the tar, in its order, or generated ones of 500 x 375 pixels."""
    if not settings.photos:
        return [_generated_photo(number) for number in range(4 if settings.small else 64)]
    with tarfile.open(settings.photos) as tar:
        contents = (tar.extractfile(member) for member in tar if member.name.lower().endswith((".jpg", ".jpeg")))
        return [content.read() for content in contents if content]


def photo_dataset(settings: Settings, rows: int) -> str:
    """Returns the path of an ingested data set of `rows` photographs, repeated under other names, in ten classes."""
    out, tree = (os.path.join(settings.folder, f"{name}-{rows}") for name in ("photos", "tree"))
    if not is_dataset(out):
        images = photographs(settings)
        for number in range(rows + 20):
            split = "train" if number < rows else "val"
            path = Path(tree, split, f"class-{number % 10}", f"{number:07d}.JPEG")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[number % len(images)])
    return _ingested(Source(tree), out, shard_bytes=32 << 20)


def _generated_photo(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(out, format="JPEG", quality=90)
    return out.getvalue()


# --- ingest ------------------------------------------------------------------------------------------------------


def _ingested(source: Source, out: str, shard_bytes: int) -> str:
    """Returns `out`, after the source is ingested there, by processes of this machine."""
    if is_dataset(out):
        return out
    settings = IngestSettings(shard_bytes=shard_bytes, handling=ImageHandling(checks="header"))
    with planned_ingest(source.resolved(), files.absolute(out), settings) as plan:
        context = ShardContext("", plan.out, plan.index.encoding, plan.index.classes, settings)
        samples = [plan.index.splits[shard.split].take(pa.array(shard.rows)) for shard in plan.shards]
        with contextlib.ExitStack() as exits:
            apply: Any = map
            if len(plan.shards) > 4 and usable_cpus() > 2:
                workers = min(usable_cpus(), len(plan.shards))
                apply = exits.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map
            receipts: list[Receipt] = list(apply(partial(_make_shard, context), samples, plan.shards))
        rejected = quarantine_table(plan.index, receipts)
        files.write_bytes(files.join(plan.out, QUARANTINE_NAME), parquet_bytes(rejected))
        publish(plan, receipts, silent)
    return out


def _make_shard(context: ShardContext, samples: pa.Table, plan: ShardPlan) -> Receipt:
    return make_shard(samples, plan, context)
