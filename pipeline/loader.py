"""Carries out the order: uint8 batches, from memory or by Ray Data, from any global step on.

A `Units` value says which rows each unit of work holds: a training unit is one rank's part of one global batch,
an evaluation unit a run of consecutive rows. Both ways of loading take the same units and yield the same batches.
A stream spans all epochs: it has one start, at the step to resume from, and no pause between epochs.
"""

import ctypes
import threading
import warnings
from collections.abc import Generator, Iterator
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.augment import augment_batch, crop_boxes, flips
from pipeline.decode import DecoderName, Views, check_decoder, decode_batch
from pipeline.draws import Keys, Stream, uniform
from pipeline.errors import ClusterError, DatasetError, ExactnessError
from pipeline.manifest import Manifest, Split
from pipeline.order import Order, Rows
from pipeline.progress import Progress, silent
from pipeline.recipes import Augment, OnCorrupt, SizeRamp
from pipeline.rows import RowIndex, load_index, read_images
from pipeline.timing import Making, Stopwatch

_STREAM_TASKS_AHEAD = 2
_TASK_CPUS = 0.5  # two tasks on a CPU: one decodes while the other reads, or is between two units
# Ray Data plans every task of a stream before it starts, 1.3 ms each: a task makes several units of a long stream,
# as many as leave this number of tasks, or as fit in this many bytes.
_STREAM_TASKS = 2048
_STREAM_TASK_BYTES = 256 << 20
_RESIDENT_ROWS = 1000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

# Ray's blocks are read-only shared memory; nothing writes into a batch, so no copy is made to please torch.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class Batch:
    """One unit of work.

    rows: int64 [N], indices in the split; images: uint8 [N, 3, S, S] in channels_last; labels: int64 [N]; keys: uint64
    [N], hashes of the rows' keys; positions: int64 [N], of the rows in the unit, where nothing is corrupt 0 to N - 1;
    corrupt: int64 [M], rows of the unit that are left out; making: how a task made it, None where none did.
    """

    unit: int
    rows: Rows
    images: Tensor
    labels: Tensor
    keys: Keys
    positions: Rows
    corrupt: Rows
    making: Making | None = None

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with images and labels on `device`."""
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


@dataclass(frozen=True)
class TrainUnits:
    """The units of one rank: unit u is its part of global step `first_step + u`, up to `num_steps` in all."""

    order: Order
    num_steps: int
    first_step: int = 0
    world_size: int = 1
    rank: int = 0

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def rows(self, unit: int) -> Rows:
        """Row indices of a unit."""
        return self.order.rows(self.first_step + unit, self.world_size, self.rank)

    def epoch(self, unit: int) -> int:
        """Epoch of a unit."""
        return (self.first_step + unit) // self.order.steps_per_epoch


@dataclass(frozen=True)
class EvaluateUnits:
    """Runs of `unit_rows` consecutive rows, dealt to the ranks in turn.

    The runs are the same for any number of workers, so each row is computed in the same company and every worker
    count gives the same numbers to the last bit.
    """

    num_rows: int
    unit_rows: int
    world_size: int = 1
    rank: int = 0

    def __len__(self) -> int:
        num_runs = -(-self.num_rows // self.unit_rows)
        return len(range(self.rank, num_runs, self.world_size))

    def rows(self, unit: int) -> Rows:
        """Row indices of a unit."""
        start = (self.rank + unit * self.world_size) * self.unit_rows
        return np.arange(start, min(start + self.unit_rows, self.num_rows), dtype=np.int64)

    def epoch(self, unit: int) -> int:
        """Evaluation knows no epochs."""
        return 0


Units = TrainUnits | EvaluateUnits


@dataclass(frozen=True)
class View:
    """How stored images become samples: `augment`, `seed` and `ramp` in training, None for evaluation."""

    size_px: int
    resize_px: int
    augment: Augment | None = None
    seed: int = 0
    decoder: DecoderName = "simplejpeg"
    ramp: SizeRamp | None = None

    def size_at(self, epoch: int) -> int:
        """Returns the size S of the samples of an epoch, in pixels."""
        return self.ramp.size_px(epoch, self.size_px) if self.ramp and self.augment is not None else self.size_px

    def batch(
        self, index: RowIndex, rows: Rows, epoch: int, corrupt: set[int] | None = None, watch: Stopwatch | None = None
    ) -> npt.NDArray[np.uint8]:
        """Reads, decodes and augments rows. Returns uint8 [N, S, S, 3], the same whatever the company.

        corrupt: a set, to note where in `rows` an image can't be used, instead of raising DatasetError; it is black
        then. watch: counts the seconds.
        """
        watch = watch or Stopwatch()
        with watch.stage("storage"):
            images = read_images(index, rows, corrupt)
        with watch.stage("decode"):
            views, spec = self._views(index, rows, epoch)
            scaled = self.augment is not None and self.augment.resized_crop_area is not None
            pixels = decode_batch(images, views, lambda n: index.place(int(rows[n])), self.decoder, scaled, corrupt)
        if spec is None or not spec.changes_samples:
            return pixels
        with watch.stage("augment"):
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            augmented = augment_batch(batch, spec, self.seed, epoch, index.key_hash[rows])
            return augmented.permute(0, 2, 3, 1).contiguous().numpy()

    def _views(self, index: RowIndex, rows: Rows, epoch: int) -> tuple[Views, Augment | None]:
        """Returns what is decoded, and what of the augmentation is left to do then."""
        sizes = np.stack([index.height[rows], index.width[rows]], axis=1)
        spec, keys, size = self.augment, index.key_hash[rows], self.size_at(epoch)
        if spec is None:
            return Views.centred(size, self.resize_px, sizes), None
        if spec.resized_crop_area is None:
            return Views.centred(size, size, sizes), spec
        boxes = crop_boxes(sizes[:, 0], sizes[:, 1], spec, uniform(self.seed, epoch, Stream.RESIZED_CROP, keys, 40))
        mirror = np.zeros(len(rows), dtype=np.bool_)
        if not spec.crop_padding_px:  # else crop and flip are one step, later
            mirror = flips(spec, self.seed, epoch, keys)
            spec = replace(spec, flip_probability=0.0)
        return Views.crops(size, sizes, boxes, mirror.astype(np.int32)), replace(spec, resized_crop_area=None)


# --- resident: the decoded split in memory -----------------------------------------------------------------------


@dataclass(frozen=True)
class Resident:
    """A decoded split: images uint8 [N, 3, S, S] (channels_last), labels int64 [N], keys uint64 [N] (hashes), corrupt
    bool [N]."""

    images: Tensor
    labels: Tensor
    keys: Keys
    corrupt: npt.NDArray[np.bool_]

    def to(self, device: torch.device) -> "Resident":
        """Returns the split with images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_resident(
    uri: str, split: Split, view: View, progress: Progress = silent, on_corrupt: OnCorrupt = "stop"
) -> Resident:
    """Decodes a whole split. `view` gives the size; its augmentation comes later, a batch at a time."""
    size = view.size_px
    index = load_index(uri, split)
    plain = View(size, view.resize_px if view.augment is None else size, decoder=view.decoder)
    images, corrupt = np.empty((split.rows, size, size, 3), dtype=np.uint8), np.zeros(split.rows, dtype=np.bool_)
    for start in range(0, split.rows, _RESIDENT_ROWS):
        progress("load", start, split.rows)
        rows = np.arange(start, min(start + _RESIDENT_ROWS, split.rows))
        left_out: set[int] | None = set() if on_corrupt == "quarantine" else None
        images[rows] = plain.batch(index, rows, 0, left_out)
        corrupt[rows[sorted(left_out or ())]] = True
    progress("load", split.rows, split.rows)
    labels = torch.from_numpy(index.label.astype(np.int64))
    return Resident(torch.from_numpy(images).permute(0, 3, 1, 2), labels, index.key_hash, corrupt)


def resident_batches(data: Resident, units: Units, view: View) -> Iterator[Batch]:
    """Yields the units' batches from memory, augmented a batch at a time on the data's device."""
    for unit in range(len(units)):
        unit_rows = units.rows(unit)
        positions = _readable(unit, data.corrupt[unit_rows])
        rows = unit_rows[positions]
        index = torch.from_numpy(rows).to(data.images.device)
        images = data.images.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
        if view.augment is not None:
            images = augment_batch(images, view.augment, view.seed, units.epoch(unit), data.keys[rows])
        left_out = unit_rows[data.corrupt[unit_rows]]
        yield Batch(unit, rows, images, data.labels[index], data.keys[rows], positions, left_out)


def _readable(unit: int, corrupt: npt.NDArray[np.bool_]) -> Rows:
    """Returns the positions of a unit's rows that can be used."""
    if len(corrupt) and corrupt.all():
        raise DatasetError(f"batch {unit}: none of its {len(corrupt)} images can be used; ingest the data set again")
    return np.flatnonzero(~corrupt)


# --- stream: Ray Data tasks read, decode and augment -------------------------------------------------------------


@dataclass(frozen=True)
class _UnitTask:
    """Makes the batch of one unit; runs in a Ray task on any CPU of the cluster."""

    index: Any  # an ObjectRef of RowIndex
    units: Units
    view: View
    on_corrupt: OnCorrupt

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}. Returns unit, row, label: int64 [N]; image: uint8 [N, S, S, 3]; corrupt: bool [N];
        making: float64 [N, 5], the same for each (`timing.Making`)."""
        import ray

        torch.set_num_threads(1)  # there are others beside it
        _keep_memory()
        check_decoder(self.view.decoder)
        unit, watch = int(batch["id"][0]), Stopwatch()
        rows, index = self.units.rows(unit), ray.get(self.index)
        left_out: set[int] | None = set() if self.on_corrupt == "quarantine" else None
        images = self.view.batch(index, rows, self.units.epoch(unit), left_out, watch)
        corrupt = np.zeros(len(rows), dtype=np.bool_)
        corrupt[sorted(left_out or ())] = True
        return {
            "unit": np.full(len(rows), unit),
            "row": rows,
            "label": index.label[rows].astype(np.int64),
            "image": images,
            "corrupt": corrupt,
            "making": np.tile(np.array(astuple(watch.making())), (len(rows), 1)),
        }


def stream_batches(
    uri: str, split: Split, units: Units, view: View, on_corrupt: OnCorrupt = "stop"
) -> Generator[Batch]:
    """Yields the units' batches as Ray Data makes them, in order, each checked against the order's rows.

    Needs Ray. on_corrupt: "quarantine" leaves out images whose bytes have changed or can't be decoded. Raises
    DatasetError otherwise, and ExactnessError if a row is missing, doubled or out of place.
    """
    import ray

    if not len(units):
        return
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    index = load_index(uri, split)
    task = _UnitTask(ray.put(index), units, view, on_corrupt)
    unit_bytes = max(1, len(units.rows(0)) * 3 * view.size_px**2)  # the largest: sizes only grow
    context.target_max_block_size = max(1 << 20, unit_bytes)  # so that a task hands over unit by unit
    num_tasks = num_stream_tasks(len(units), unit_bytes)
    numbers = [{"id": unit} for unit in range(len(units))]
    with ray.data.DataContext.current(context):  # a data set keeps a copy of the context it was made in
        # not `range`, whose reads are tasks of their own and start on half of the CPUs
        source = ray.data.from_items(numbers, override_num_blocks=num_tasks)
        dataset = source.map_batches(task, batch_size=1, num_cpus=_TASK_CPUS)
    ahead, before = _STREAM_TASKS_AHEAD, set(threading.enumerate())
    blocks = iter(dataset.iter_batches(batch_size=None, prefetch_batches=ahead, batch_format="numpy"))
    try:
        yield from _units_from_blocks(blocks, units, index.key_hash)
    finally:
        blocks.close()  # ends its tasks, also where nobody wants the rest, and tells its threads to end
        for thread in set(threading.enumerate()) - before:
            if thread.name == "iter_threaded":  # one that still asked for blocks after ray.shutdown() ended the process
                thread.join(timeout=10)


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Has glibc keep what is freed: batches of the same size come again and again, and fresh pages cost 3 %."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def num_stream_tasks(num_units: int, unit_bytes: int) -> int:
    """Returns how many tasks make `num_units` units of `unit_bytes` bytes each."""
    wanted = -(-num_units // _STREAM_TASKS)
    fitting = max(1, _STREAM_TASK_BYTES // unit_bytes)
    return -(-num_units // min(wanted, fitting))


def _units_from_blocks(blocks: Iterator[dict[str, npt.NDArray[Any]]], units: Units, keys: Keys) -> Iterator[Batch]:
    # A block usually is a unit, but Ray Data may split a large one or join small ones.
    unit, held = 0, None
    for block in blocks:
        held = block if held is None else {name: np.concatenate([held[name], block[name]]) for name in block}
        while unit < len(units) and len(held["row"]) >= len(expected := units.rows(unit)):
            part = {name: column[: len(expected)] for name, column in held.items()}
            held = {name: column[len(expected) :] for name, column in held.items()}
            if not (np.array_equal(part["row"], expected) and (part["unit"] == unit).all()):
                raise ExactnessError(f"unit {unit}: rows {part['row'][:8]}... came, {expected[:8]}... were due")
            yield _as_batch(unit, part, keys)
            unit += 1
    if unit != len(units):
        raise ExactnessError(f"the stream ended after {unit} of {len(units)} units")


def _as_batch(unit: int, part: dict[str, npt.NDArray[Any]], keys: Keys) -> Batch:
    making, corrupt = Making(*part["making"][0].tolist()), part["corrupt"]
    positions, left_out = _readable(unit, corrupt), part["row"][corrupt]
    if len(left_out):
        part = {name: column[positions] for name, column in part.items()}
    images = torch.from_numpy(np.ascontiguousarray(part["image"])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.ascontiguousarray(part["label"]))
    return Batch(unit, part["row"], images, labels, keys[part["row"]], positions, left_out, making)


def check_stream_resources(num_workers: int, cpus_per_worker: float, total_cpus: float) -> None:
    """Raises ClusterError if trainers would leave no CPU for reading: the stream would wait for ever, silently."""
    free = total_cpus - num_workers * cpus_per_worker
    if free < 1:
        raise ClusterError(
            f"workers={num_workers} x {cpus_per_worker:g} CPUs leave {free:g} of the cluster's {total_cpus:g} CPUs "
            "for reading; use fewer workers or add a node (at least 1 CPU must stay free)"
        )


def sample_images(uri: str, manifest: Manifest, split: str, count: int, view: View) -> Tensor:
    """Returns uint8 [N, 3, S, S]: the first rows of a split in evaluation view, without those that can't be decoded.

    There are `count` at most. Rows are pre-shuffled.
    """
    plain = View(view.size_px, view.resize_px, decoder=view.decoder)
    chosen, corrupt = manifest.split(split), set[int]()
    images = plain.batch(load_index(uri, chosen), np.arange(min(count, chosen.rows)), 0, corrupt)
    return torch.from_numpy(np.delete(images, sorted(corrupt), axis=0)).permute(0, 3, 1, 2)
