"""Batches decoded by threads of this process, straight into the memory that goes to the device; without Ray.

A call of the kernel decodes many images without the GIL. So threads decode as fast as processes would, and no batch
has to be copied from one process to another.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cluster.ray_tasks import local_processes, usable_cpus
from pipeline.config.choices import OnCorrupt
from pipeline.core.keyed_random import Epochs, epochs_at
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.row_reader import RowIndex, load_index
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.decode import check_decoder
from pipeline.loader.row_groups.estimate import PART_ROWS
from pipeline.loader.sample_order import Rows
from pipeline.loader.samplers import Sampler
from pipeline.loader.stage_times import BatchTiming, Stopwatch
from pipeline.loader.streaming.buffers import ImageBuffers
from pipeline.loader.streaming.plan import ConsumerClosedError, Source, StreamPlan
from pipeline.loader.transform import Pixels, Transform
from pipeline.storage import files

_log = logging.getLogger(__name__)

# A thread that waits for object storage needs no CPU: of four one decodes. A guess, not measured.
_REMOTE_THREADS = 4
_POLL_SECONDS = 0.2


def decode_threads(remote: bool = False) -> int:
    """Returns the number of decoding threads of this process: one a CPU of its share of the node's, and at least one.

    remote: the images are in object storage; then four a CPU.
    """
    share = max(1, usable_cpus() // local_processes())
    return share * (_REMOTE_THREADS if remote else 1)


def local_batches(
    uri: str, split: Split, sampler: Sampler, transform: Transform, on_corrupt: OnCorrupt = "stop"
) -> Generator[Batch]:
    """Yields the sampler's batches, in order, decoded by threads of this process ahead of the consumer.

    At least one whole batch is made ahead, and as many as keep all threads busy; so memory is bounded by a few batches.
    on_corrupt: "quarantine" leaves out images whose bytes have changed or can't be decoded; "stop" raises DatasetError.
    """
    return thread_source(StreamPlan(uri, split, sampler, transform, on_corrupt))(lambda: False)


def thread_source(plan: StreamPlan, pinned: bool = False) -> Source:
    """Returns what makes `local_batches`. pinned: images lie in pinned memory, from which a GPU copies by itself."""

    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        waiting: deque[PendingBatch] = deque()
        with closing(BatchThreads(plan, pinned)) as threads:
            for number in range(len(plan.sampler)):
                waiting.append(threads.begin(number))
                if len(waiting) > threads.batches_ahead(len(waiting[0].rows)):
                    yield threads.end(waiting.popleft(), is_closed)
            while waiting:
                yield threads.end(waiting.popleft(), is_closed)

    return source


class BatchThreads:
    """Threads of this process that make any batches of a plan."""

    def __init__(self, plan: StreamPlan, pinned: bool) -> None:
        check_decoder(plan.transform.decoder)
        self._plan, self._index, self._buffers = plan, plan.index(), ImageBuffers(pinned)
        self._ahead = plan.ahead()
        self.count = decode_threads(remote=not all(map(files.is_local, self._index.paths)))
        start = _one_thread_each if plan.transform.needs_torch else None
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="decode", initializer=start)

    def batches_ahead(self, num_rows: int) -> int:
        """Returns how many batches of so many rows are begun ahead of the consumer: all threads are busy then."""
        return 1 + math.ceil(self.count / max(1, math.ceil(num_rows / PART_ROWS)))

    def begin(self, number: int, part_done: Callable[[], None] = lambda: None) -> "PendingBatch":
        """Returns a batch of the sampler that is being made. part_done: called, in a thread, after each part of it."""
        plan, index = self._plan, self._index
        if self._ahead is not None:
            index = self._ahead.index(plan.sampler.step(number))
        rows, epochs = plan.sampler.rows(number), plan.sampler.epochs(number)
        # One size for all parts: they may hold different epochs of a size ramp.
        fixed = plan.transform.at(epochs)
        pixels = self._buffers.take((len(rows), fixed.size_px, fixed.size_px, 3))

        def load(part: slice) -> _Part:
            watch = Stopwatch()
            unusable: set[int] | None = set() if plan.on_corrupt == "quarantine" else None
            fixed.load(index, rows[part], epochs_at(epochs, part), unusable, watch, pixels[part])
            return _Part([position + part.start for position in unusable or ()], watch.timing())

        parts = [slice(start, min(start + PART_ROWS, len(rows))) for start in range(0, len(rows), PART_ROWS)]
        made = [self._pool.submit(load, part) for part in parts]
        for each in made:
            each.add_done_callback(lambda _: part_done())
        return PendingBatch(number, index, rows, epochs, pixels, made)

    def end(self, batch: "PendingBatch", is_closed: Callable[[], bool]) -> Batch:
        """Waits for a batch, of which all before have ended. Raises what `PendingBatch.result` raises."""
        made = batch.result(is_closed)
        self.passed(batch.number)
        return made

    def passed(self, number: int) -> None:
        """Notes that a batch and all before have ended: their row groups aren't needed for them any more."""
        if self._ahead is not None:
            self._ahead.read_up_to(self._plan.sampler.step(number) + 1)

    def close(self) -> None:
        """Ends the threads; what hasn't begun isn't made."""
        if self._ahead is not None:
            self._ahead.close()  # nobody waits for a row group any more
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Part:
    """A part of a batch that is made: positions in the batch that can't be used, and how long it took."""

    unusable: list[int]
    timing: BatchTiming


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose parts are being decoded into `pixels`."""

    number: int
    index: RowIndex
    rows: Rows
    epochs: Epochs
    pixels: Pixels
    parts: list[Future[_Part]]

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for."""
        return all(part.done() for part in self.parts)

    def cancel(self) -> None:
        """Has parts that haven't begun never begin."""
        for part in self.parts:
            part.cancel()

    def result(self, is_closed: Callable[[], bool]) -> Batch:
        """Waits for all parts. Raises what the first part that failed raised, or ConsumerClosedError."""
        done = [_wait(part, is_closed) for part in self.parts]
        corrupt = np.zeros(len(self.rows), dtype=np.bool_)
        corrupt[[position for part in done for position in part.unusable]] = True
        labels = self.index.label[self.rows].astype(np.int64)
        columns: dict[str, Any] = {"row": self.rows, "label": labels, "image": self.pixels, "corrupt": corrupt}
        if done:
            columns["timing"] = astuple(BatchTiming.together([part.timing for part in done]))
        return batch_from_columns(self.number, columns, self.index.key_hash, self.epochs)


def _wait(part: Future[_Part], is_closed: Callable[[], bool]) -> _Part:
    while not is_closed():
        if wait([part], timeout=_POLL_SECONDS).done:
            return part.result()
    raise ConsumerClosedError


def _one_thread_each() -> None:
    """Has operations of torch in the calling thread use that thread alone; torch itself could only tell all threads."""
    torch.get_num_threads()  # a thread's first question sets it to all CPUs
    _openmp().limit(limits=1)


@lru_cache(maxsize=1)
def _openmp() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


def sample_images(uri: str, manifest: Manifest, split: str, count: int, transform: Transform) -> Tensor:
    """Returns uint8 [N, 3, S, S], N <= `count`: the first rows of a split as evaluation sees them.

    They are a random sample, since an ingest shuffles the rows. Images that can't be decoded are left out.
    """
    plain = Transform(transform.size_px, transform.resize_px, decoder=transform.decoder)
    chosen, corrupt = manifest.split(split), set[int]()
    images = plain.load(load_index(uri, chosen), np.arange(min(count, chosen.rows)), 0, corrupt)
    return torch.from_numpy(np.delete(images, sorted(corrupt), axis=0)).permute(0, 3, 1, 2)
