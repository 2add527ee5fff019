"""Carries out the order: uint8 batches, from memory or by Ray Data, from any global step on.

Both ways of loading take the same units and yield the same batches.
A stream spans all epochs: it has one start, at the step to resume from, and no pause between epochs.
"""

import queue
import threading
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cluster.ray_tasks import TASK_CPUS, in_order
from pipeline.config.recipe import OnCorrupt
from pipeline.core import errors
from pipeline.core.errors import DatasetError, ExactnessError
from pipeline.core.keyed_random import Epochs, Keys, epochs_at
from pipeline.core.progress import Progress, silent
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.row_group_cache import folder_of
from pipeline.dataset.row_reader import load_index
from pipeline.loader.augment import augment_batch
from pipeline.loader.sample_order import Rows
from pipeline.loader.stage_times import Making
from pipeline.loader.transform import UnitTask, View
from pipeline.loader.work_units import Units

Block = dict[str, npt.NDArray[Any]]
_BLOCKS_AHEAD = 2
# Ray Data plans every task of an execution before it starts, and keeps some kilobytes of each that it ever did.
RUN_UNITS, _RUNS_OVERLAP = 1024, 64
_RESIDENT_ROWS = 1000

# Ray's blocks are read-only shared memory; nothing writes into a batch, so no copy is made to please torch.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class Batch:
    """One unit of work.

    rows: int64 [N], indices in the split; images: uint8 [N, 3, S, S] in channels_last; labels: int64 [N]; keys: uint64
    [N], hashes of the rows' keys; positions: int64 [N], of the rows in the unit, where nothing is corrupt 0 to N - 1;
    corrupt: int64 [M], rows of the unit that are left out; epochs: of all rows, or int64 [N]; making: how a task made
    it, None where none did.
    """

    unit: int
    rows: Rows
    images: Tensor
    labels: Tensor
    keys: Keys
    positions: Rows
    corrupt: Rows
    epochs: Epochs = 0
    making: Making | None = None

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with images and labels on `device`."""
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


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
        epochs = epochs_at(units.epochs(unit), positions)
        images = data.images.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
        if view.augment is not None:
            images = augment_batch(images, view.augment, view.seed, epochs, data.keys[rows])
        left_out = unit_rows[data.corrupt[unit_rows]]
        yield Batch(unit, rows, images, data.labels[index], data.keys[rows], positions, left_out, epochs)


def _readable(unit: int, corrupt: npt.NDArray[np.bool_]) -> Rows:
    """Returns the positions of a unit's rows that can be used."""
    if len(corrupt) and corrupt.all():
        raise DatasetError(f"batch {unit}: none of its {len(corrupt)} images can be used; ingest the data set again")
    return np.flatnonzero(~corrupt)


def direct_batches(uri: str, split: Split, units: Units, view: View) -> Iterator[Batch]:
    """Yields the units' batches as a thread of this process makes them, one ahead: where no Ray runs.

    Raises DatasetError if an image's bytes have changed or can't be decoded.
    """
    index = load_index(uri, split)

    def made(unit: int) -> Batch:
        rows, epochs = units.rows(unit), units.epochs(unit)
        pixels = torch.from_numpy(view.batch(index, rows, epochs)).permute(0, 3, 1, 2)
        labels = torch.from_numpy(index.label[rows].astype(np.int64))
        return Batch(unit, rows, pixels, labels, index.key_hash[rows], np.arange(len(rows)), rows[:0], epochs)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(made, 0) if len(units) else None
        for unit in range(len(units)):
            assert ahead is not None
            batch, ahead = ahead.result(), pool.submit(made, unit + 1) if unit + 1 < len(units) else None
            yield batch


# --- stream: Ray Data tasks read, decode and augment -------------------------------------------------------------


def stream_batches(
    uri: str, split: Split, units: Units, view: View, on_corrupt: OnCorrupt = "stop", cache: str = ""
) -> Generator[Batch]:
    """Yields the units' batches as Ray Data makes them, in order, each checked against the order's rows.

    Needs Ray. on_corrupt: "quarantine" leaves out images whose bytes have changed or can't be decoded. Raises
    DatasetError otherwise, and ExactnessError if a row is missing, doubled or out of place. cache: a folder on each
    node, to keep there what is read of object storage.
    """
    import ray

    if not len(units):
        return
    index = load_index(uri, split)
    if cache:
        index = replace(index, cache=folder_of(cache, split))
    task = UnitTask(ray.put(index), units, view, on_corrupt)
    with closing(_blocks(task, len(units))) as blocks:
        yield from _units_from_blocks(blocks, units, index.key_hash)


def _blocks(task: UnitTask, num_units: int) -> Generator[Block]:
    """Yields all units' blocks, by one execution of Ray Data after another, each begun before the last one ends."""
    runs = [range(first, min(first + RUN_UNITS, num_units)) for first in range(0, num_units, RUN_UNITS)]
    fetching = [_Fetch(task, runs[0])]
    try:
        for number, run in enumerate(runs):
            for count, block in enumerate(fetching[-1].blocks()):
                if count == max(0, len(run) - _RUNS_OVERLAP) and number + 1 < len(runs):
                    fetching.append(_Fetch(task, runs[number + 1]))
                    fetching.reverse()
                yield block
            fetching.pop().close()
    finally:
        for fetch in fetching:
            fetch.close()


class _Fetch:
    """An execution of Ray Data that makes some units, and a thread that fetches their blocks a little ahead."""

    def __init__(self, task: UnitTask, run: range) -> None:
        self._fetched: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=_BLOCKS_AHEAD)
        self._unwanted = threading.Event()
        arguments = (task, run)
        self._thread = threading.Thread(target=self._fetch, args=arguments, daemon=True, name="fetch-blocks")
        self._thread.start()

    def blocks(self) -> Iterator[Block]:
        """Yields the blocks; raises what the execution raised."""
        while (item := self._fetched.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Ends the execution, also where nobody wants the rest."""
        self._unwanted.set()
        self._thread.join(timeout=10)  # one that still asked for blocks after ray.shutdown() would end the process

    def _fetch(self, task: UnitTask, run: range) -> None:
        try:
            with closing(_execute(task, run)) as blocks:
                for block in blocks:
                    self._put(block)
                    if self._unwanted.is_set():
                        break
            self._put(None)
        except BaseException as error:  # raised again by the one who waits for it
            self._put(error)

    def _put(self, item: Block | BaseException | None) -> None:
        while not self._unwanted.is_set():
            with suppress(queue.Full):
                self._fetched.put(item, timeout=0.1)
                return


def _execute(task: UnitTask, run: range) -> Generator[Block]:
    return in_order(run, lambda source: source.map_batches(task, batch_size=1, num_cpus=TASK_CPUS))


def _units_from_blocks(blocks: Iterator[Block], units: Units, keys: Keys) -> Iterator[Batch]:
    due = 0
    for block in blocks:
        for number, unit in enumerate(block["unit"].tolist()):
            made = {name: column[number] for name, column in block.items()}
            if made["error"]:
                name, _, text = made["error"].partition(" ")
                raise getattr(errors, name)(text)
            expected = units.rows(due) if due < len(units) else np.empty(0, dtype=np.int64)
            if unit != due or not np.array_equal(made["row"], expected):
                raise ExactnessError(
                    f"unit {unit} with rows {made['row'][:8]}... came, unit {due} with {expected[:8]}... was due"
                )
            yield _as_batch(unit, made, keys, units.epochs(unit))
            due += 1
    if due != len(units):
        raise ExactnessError(f"the stream ended after {due} of {len(units)} units")


def _as_batch(unit: int, made: Block, keys: Keys, epochs: Epochs) -> Batch:
    positions = _readable(unit, made["corrupt"])
    rows, images, labels = made["row"], made["image"], made["label"]
    left_out = rows[made["corrupt"]]
    if len(left_out):
        rows, images, labels = rows[positions], images[positions], labels[positions]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    making, truth = Making(*made["making"]), torch.from_numpy(labels)
    return Batch(unit, rows, pixels, truth, keys[rows], positions, left_out, epochs_at(epochs, positions), making)


def sample_images(uri: str, manifest: Manifest, split: str, count: int, view: View) -> Tensor:
    """Returns uint8 [N, 3, S, S]: the first rows of a split in evaluation view, without those that can't be decoded.

    There are `count` at most. Rows are pre-shuffled.
    """
    plain = View(view.size_px, view.resize_px, decoder=view.decoder)
    chosen, corrupt = manifest.split(split), set[int]()
    images = plain.batch(load_index(uri, chosen), np.arange(min(count, chosen.rows)), 0, corrupt)
    return torch.from_numpy(np.delete(images, sorted(corrupt), axis=0)).permute(0, 3, 1, 2)
