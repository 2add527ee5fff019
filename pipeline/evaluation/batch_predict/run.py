"""What a trained model says of any images: read and decoded on any CPU, predicted by a pool of workers, by Ray Data.

Images are seen as in an evaluation. One that can't be read or decoded is reported in its row, and nothing stops for it.
Results are written part by part; the same call goes on after the parts that are there.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order
from pipeline.config.choices import TestViews
from pipeline.core.errors import CheckpointError, ExactnessError, SourceError
from pipeline.core.progress import Progress, silent
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES
from pipeline.dataset.parquet import parquet_bytes
from pipeline.evaluation.predictions import TOP
from pipeline.ingestion.image_check import ImageHandling, Refused, check_image
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources.folders import is_image
from pipeline.ingestion.sources.members import Listing, list_members
from pipeline.loader.decode import CropGeometry, DecoderName, check_decoder, decode_batch
from pipeline.loader.transform import Transform, evaluation_transform
from pipeline.models.load import TrainedModel
from pipeline.storage import files
from pipeline.storage.claim import claim_folder

PLAN_NAME, SUMMARY_NAME = "plan.json", "predictions.json"
UNIT_IMAGES = 128  # read, decoded and predicted together
PART_UNITS = 64  # written together
Arrays = dict[str, npt.NDArray[Any]]
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the image: its name below the input
        ("class", pa.string()),  # the best one; null where there is an error
        ("probability", pa.float32()),
        ("classes", pa.list_(pa.string())),  # the five best, best first
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),  # why it couldn't be used, or null
    ]
)


@dataclass(frozen=True)
class PredictJob:
    """What is predicted, by what, and where it goes. samples: name, object, offset and length of each image."""

    model: TrainedModel
    samples: pa.Table
    out: str
    views: TestViews
    decoder: DecoderName
    num_workers: int = 1
    use_gpu: bool = False
    threads: int = 1

    @property
    def num_units(self) -> int:
        """Units of work."""
        return -(-self.samples.num_rows // UNIT_IMAGES)

    def plan(self) -> dict[str, Any]:
        """What the results depend on."""
        names = hashlib.sha256()
        for column in self.samples.columns:
            names.update("\n".join(map(str, column.to_pylist())).encode())
        return {
            "model": self.model.sha256,
            "images": names.hexdigest(),
            "views": self.views,
            "decoder": self.decoder,
            "unit_images": UNIT_IMAGES,
            "part_units": PART_UNITS,
        }


@dataclass(frozen=True)
class Predicted:
    """What came of it: images, those that couldn't be used, rows of each predicted class, seconds, and of how many
    images in them."""

    images: int
    unusable: int
    per_class: dict[str, int]
    first_errors: tuple[str, ...]
    seconds: float
    predicted_now: int


def find_images(uri: str, spool: str, progress: Progress) -> tuple[pa.Table, int]:
    """Returns (name, object, offset, length) of the images at absolute `uri`, and how many files aren't any.

    A folder or a prefix with all below it, a tar (plain, .gz, .xz), or one image. Raises SourceError.
    """
    if files.kind(uri) == "missing":
        raise SourceError(f"input={uri}: no such file or folder; give an existing path or URI")
    if files.kind(uri) == "file" and is_image(uri):
        return _samples([files.basename(uri)], [uri], [0], [files.size(uri)]), 0
    return images_of(list_members(uri, spool, progress))


def images_of(listing: Listing) -> tuple[pa.Table, int]:
    """Returns (name, object, offset, length) of the files that are images by their names, and how many are not.

    Raises SourceError if there are none.
    """
    chosen = np.array([is_image(name) for name in listing.names], dtype=np.bool_)
    if not chosen.any():
        raise SourceError(f"input={listing.uri}: holds no image, by their names; give a folder or an archive of images")
    table = _samples(listing.names, listing.objects, listing.offsets, listing.lengths)
    return table.filter(pa.array(chosen)), int((~chosen).sum())


def _samples(names: Any, objects: Any, offsets: Any, lengths: Any) -> pa.Table:
    """Returns the columns that `gather` reads by."""
    columns = {"name": names, "object": pa.array(objects, pa.string()).dictionary_encode()}
    return pa.table({**columns, "offset": offsets, "length": lengths})


# --- what the workers do -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeTask:
    """Reads and decodes the images of a unit; runs in a Ray task on any CPU."""

    samples: Any  # an ObjectRef of the table
    view: Transform

    def __call__(self, batch: Arrays) -> Arrays:
        """batch: {"id": int64 [1]}. Returns one row: unit: int64 [1]; image: uint8 [1, N, S, S, 3]; error: str [1], a
        JSON list of N texts, empty for a usable image.
        """
        import ray

        unit = int(batch["id"][0])
        check_decoder(self.view.decoder)
        images, errors = decode_unit(ray.get(self.samples).slice(unit * UNIT_IMAGES, UNIT_IMAGES), self.view)
        return {"unit": np.array([unit]), "image": images[None], "error": np.array([json.dumps(errors)])}


def decode_unit(samples: pa.Table, view: Transform) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Returns uint8 [N, S, S, 3], black where an image can't be used, and why that is; "" for the others."""
    found: dict[int, Any] = {}
    errors = ["" if length else "empty: zero bytes" for length in samples["length"].to_pylist()]
    for position, data in _read(samples, errors):
        stored = check_image(data, samples["name"][position].as_py(), ImageHandling("header"))
        if isinstance(stored, Refused):
            errors[position] = stored.reason
        else:
            found[position] = stored
    images = np.zeros((samples.num_rows, view.size_px, view.size_px, 3), dtype=np.uint8)
    places = sorted(found)
    if places:
        sizes = np.array([(found[n].height, found[n].width) for n in places])
        corrupt: set[int] = set()
        data = [found[n].data for n in places]
        views = CropGeometry.centre_crops(view.size_px, view.resize_px, sizes)
        images[places] = decode_batch(data, views, str, view.decoder, corrupt=corrupt)
        for index in corrupt:
            errors[places[index]] = "damaged: the image can't be decoded in full"
    return images, errors


def _read(samples: pa.Table, errors: list[str]) -> Iterator[tuple[int, Any]]:
    """Yields the images that can be read, in any order; notes why others can't. A storage that is away is raised."""
    lengths = samples["length"].to_pylist()
    for position, length in enumerate(lengths):
        if length > MAX_IMAGE_BYTES:
            errors[position] = f"too large: {length:,} bytes, the limit is {MAX_IMAGE_BYTES:,}"
    done = set()
    try:
        for position, data in gather(samples):
            done.add(position)
            yield position, data
    except (OSError, SourceError):  # one file that is gone or forbidden spoils a read of many: now one by one
        for position, sample in enumerate(samples.to_pylist()):
            if position not in done and not errors[position]:
                try:
                    data = files.read_range(sample["object"], sample["offset"], sample["length"])
                except (OSError, SourceError) as error:
                    errors[position] = f"can't be read: {error}"
                else:
                    yield position, data


class PredictWorker:
    """Holds the network; an actor of Ray Data's pool."""

    def __init__(self, model: TrainedModel, views: TestViews, threads: int) -> None:
        import torch

        from pipeline.models.batch_transforms import Normalise
        from pipeline.models.load import load_net

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        self._net = load_net(model).to(self._device)
        self._normalise = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std).to(self._device)
        self._views, self._top = views, min(TOP, len(model.classes))

    def __call__(self, batch: Arrays) -> Arrays:
        """batch: of `DecodeTask`. Returns one row: unit, error; classes int64 and probabilities float32 [1, N, K]."""
        import torch

        from pipeline.evaluation.inference import view_logits

        with torch.inference_mode():
            images = torch.from_numpy(batch["image"][0]).permute(0, 3, 1, 2)
            logits = view_logits(self._net, self._normalise(images), self._views)
            probabilities, classes = logits.softmax(dim=1).topk(self._top, dim=1)
        return {
            "unit": batch["unit"],
            "error": batch["error"],
            "classes": classes.cpu().numpy()[None],
            "probabilities": probabilities.cpu().numpy()[None],
        }


# --- all of it ---------------------------------------------------------------------------------------------------


def predict(job: PredictJob, progress: Progress = silent) -> Predicted:
    """Predicts every image and returns when all parts lie at `job.out`. Needs Ray.

    Raises CheckpointError if the folder holds the predictions of another model or of other images.
    """
    _claim(job)
    start = time.perf_counter()
    todo = [part for part in _parts(job) if not files.exists(_part_uri(job, part))]
    units = [unit for part in todo for unit in part]
    total, done, waiting = job.samples.num_rows, job.num_units - len(units), list[pa.Table]()
    progress("predict", done * UNIT_IMAGES, total)
    predicted = 0
    lines = _execute(job, units)
    for part in todo:
        waiting.clear()
        for unit in part:
            made = next(lines)
            if int(made["unit"][0]) != unit:
                raise ExactnessError(f"unit {int(made['unit'][0])} came, unit {unit} was due")
            waiting.append(_as_table(job, unit, made))
            done, predicted = done + 1, predicted + waiting[-1].num_rows
            progress("predict", min(total, done * UNIT_IMAGES), total)
        files.write_bytes(_part_uri(job, part), parquet_bytes(pa.concat_tables(waiting)))
    return _summed(job, time.perf_counter() - start, predicted)


def _claim(job: PredictJob) -> None:
    place, mine = files.join(job.out, PLAN_NAME), job.plan()
    if claim_folder(place, mine, indent=None) != mine:
        raise CheckpointError(
            f"out={job.out}: holds predictions by another model, of other images or with other views; give another"
        )


def _parts(job: PredictJob) -> list[range]:
    return [range(first, min(first + PART_UNITS, job.num_units)) for first in range(0, job.num_units, PART_UNITS)]


def _part_uri(job: PredictJob, part: range) -> str:
    return files.join(job.out, f"part-{part.start // PART_UNITS:06d}.parquet")


def _execute(job: PredictJob, units: list[int]) -> Iterator[Arrays]:
    import ray

    if not units:
        return
    model = job.model
    task = DecodeTask(ray.put(job.samples), evaluation_transform(model.recipe, job.decoder))

    def stages(source: Any) -> Any:
        return source.map_batches(task, batch_size=1, num_cpus=TASK_CPUS).map_batches(
            PredictWorker,
            fn_constructor_args=(model, job.views, job.threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=job.num_workers),
            num_cpus=0 if job.use_gpu else 0.5,
            num_gpus=1 if job.use_gpu else 0,
        )

    yield from map_in_order(units, stages)


def _as_table(job: PredictJob, unit: int, made: Arrays) -> pa.Table:
    names = job.samples["name"].slice(unit * UNIT_IMAGES, UNIT_IMAGES)
    errors: list[str] = json.loads(made["error"][0])
    classes = np.array(job.model.classes, dtype=object)[made["classes"][0]].tolist()
    shares = made["probabilities"][0].tolist()
    usable = [not error for error in errors]

    def where(values: list[Any]) -> list[Any]:
        return [value if good else None for value, good in zip(values, usable, strict=True)]

    columns = {
        "key": names.combine_chunks(),
        "class": where([line[0] for line in classes]),
        "probability": where([line[0] for line in shares]),
        "classes": where(classes),
        "probabilities": where(shares),
        "error": [error or None for error in errors],
    }
    return pa.table(columns, schema=_SCHEMA)


def _summed(job: PredictJob, seconds: float, predicted: int) -> Predicted:
    """Reads what was written, so that the summary is of all parts, and writes it."""
    per_class = dict.fromkeys(job.model.classes, 0)
    images, unusable, first = 0, 0, list[str]()
    for part in _parts(job):
        table = pa.parquet.read_table(pa.BufferReader(files.read_bytes(_part_uri(job, part))))
        images += table.num_rows
        for line in pa.compute.value_counts(table["class"].drop_null()).to_pylist():
            per_class[line["values"]] += line["counts"]
        wrong = table.filter(table["error"].is_valid())
        unusable += wrong.num_rows
        first += [
            f"{key}: {error}"
            for key, error in zip(*wrong.slice(0, 5).select(["key", "error"]).to_pydict().values(), strict=True)
        ]
    if images != job.samples.num_rows:
        raise ExactnessError(f"{job.out}: {images:,} rows for {job.samples.num_rows:,} images; remove it and run again")
    summary = {
        **job.plan(),
        "model_uri": job.model.uri,
        "images_count": images,
        "unusable": unusable,
        "per_class": per_class,
    }
    files.write_json(files.join(job.out, SUMMARY_NAME), summary, pretty=True)
    return Predicted(images, unusable, per_class, tuple(first[:5]), seconds, predicted)
