"""The training loop itself, on this device and without Ray: guard, meter, copies, watchdog and all that is in it."""

import contextlib
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.recipe import Recipe
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, Shard, Split
from pipeline.loader.batch import Batch
from pipeline.loader.device.copy_ahead import copied_ahead
from pipeline.loader.samplers import TrainSampler
from pipeline.training.job import TrainJob
from pipeline.training.loop import Due, Schedule, read_results, report, run_steps
from pipeline.training.setup import Place, set_up
from pipeline.training.worker import Worker
from pipeline.training.worker_data import Batches

_GROUP_ROWS = 512


@dataclass(frozen=True)
class StepsOnly:
    """A schedule of steps and reports: a training run's between its checkpoints and evaluations.

    report_every: steps between reports, a twentieth of an epoch in a run.
    """

    last_step: int
    report_every: int = 250
    stage: str = "bench"

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps in all."""
        return Due(line=step == self.last_step or step % self.report_every == 0)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all."""
        return step, self.last_step


@dataclass(frozen=True)
class WithoutRay:
    """A run's own schedule, without what needs Ray or isn't part of training: reports to Ray Train, evaluations."""

    inner: Any
    checkpoints: bool = False

    @property
    def stage(self) -> str:
        """Name of the stage, for the display."""
        return str(self.inner.stage)

    @property
    def last_step(self) -> int:
        """Steps after which the loop ends."""
        return int(self.inner.last_step)

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps in all."""
        due: Due = self.inner.due(step)
        kept = due.checkpoint and self.checkpoints
        return replace(due, validation=False, checkpoint=kept, preemption_check=False, epoch_end=False)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all."""
        progress: tuple[int, int] = self.inner.progress(step)
        return progress


class HostBatches(Batches):
    """Batches that lie on the host, decoded already: a stream whose loader is never late."""

    def __init__(self, job: TrainJob, data: Manifest, device: torch.device, batch: Batch) -> None:
        super().__init__(job, data, 1, 0, device, silent)
        self._batch = batch

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields batches of the rows that the run asks for, all with the same images."""
        sampler = TrainSampler(self.order, num_steps, first_step)
        return copied_ahead(lambda closed: self._batches(sampler), self.device)

    def _batches(self, sampler: TrainSampler) -> Generator[Batch]:
        for number in range(len(sampler)):
            rows = sampler.rows(number)
            yield replace(self._batch, index=number, rows=rows, epochs=sampler.epochs(number))


class Loop:
    """A worker on this device that trains as many steps as it is asked for, again and again.

    batch: on the host; every batch of the loop has its images. folder: of the run; with a checkpoint in it the worker
    goes on from there. options: fields of the job. Close it at the end.
    """

    def __init__(self, recipe: Recipe, batch: Batch, device: torch.device, folder: str, **options: Any) -> None:
        data = write_manifest(f"{folder}/data", len(batch.rows))
        job = TrainJob(f"{folder}/data", f"{folder}/run", recipe, **options)
        self._exits = contextlib.ExitStack()
        batches = HostBatches(job, data, device, batch)
        self.worker: Worker = set_up(job, self._exits, Place.alone(device), batches)

    def __call__(self, count: int) -> None:
        """Does `count` steps, with a report after every 250 and at the end."""
        schedule: Schedule = StepsOnly(self.worker.state.step + count)
        run_steps(self.worker, schedule)
        read_results(self.worker, catch_up=True)
        report(self.worker, schedule, catch_up=True)

    def close(self) -> None:
        """Ends what set-up has started."""
        self._exits.close()


@contextlib.contextmanager
def open_loop(recipe: Recipe, batch: Batch, device: torch.device, folder: str = "", **options: Any) -> Iterator[Loop]:
    """Yields a loop, closed afterwards, whose run lies in `folder`, or else in a temporary one."""
    with contextlib.ExitStack() as exits:
        if not folder:
            place = tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True)
            folder = exits.enter_context(place)
        loop = Loop(recipe, batch, device, folder, **options)
        exits.callback(loop.close)
        yield loop


def write_manifest(folder: str, batch_size: int) -> Manifest:
    """Writes the manifest of a data set of ImageNet's size, without its rows, and returns it.

    Its rows are a multiple of the batch size, so that all batches have that size.
    """
    groups = 1_280_000 // _GROUP_ROWS // batch_size * batch_size
    rows = groups * _GROUP_ROWS
    sizes, zeros = (_GROUP_ROWS,) * groups, (0,) * groups
    shard = Shard("none.parquet", rows, 0, "", sizes, zeros, zeros, "none.parquet", "")
    classes = tuple(f"class-{number:03d}" for number in range(1000))
    split = Split(rows, tuple(np.full(1000, rows // 1000).tolist()), (shard,))
    data = Manifest("bench", classes, 0, {"train": split, "val": split}).with_digest()
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, MANIFEST_NAME).write_bytes(data.to_json())
    return manifest.load(folder)
