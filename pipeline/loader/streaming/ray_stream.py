"""Batches made by Ray Data tasks on any CPU of the cluster, in order, from any global step on.

One stream spans all epochs: it starts once, at the step to resume from, and doesn't pause between epochs.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order
from pipeline.config.choices import OnCorrupt
from pipeline.core import errors
from pipeline.core.errors import ExactnessError
from pipeline.core.keyed_random import Keys
from pipeline.dataset.manifest import Split
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.samplers import Sampler
from pipeline.loader.streaming.plan import ConsumerClosedError, Source, StreamPlan
from pipeline.loader.streaming.ray_task import BatchTask
from pipeline.loader.transform import Transform

Block = dict[str, npt.NDArray[Any]]
_BLOCKS_AHEAD = 2
# Ray Data plans all tasks of an execution before the first one starts, and keeps some kilobytes for each until the
# execution ends. So a long stream is cut into executions; the next one starts before the last one runs dry.
BATCHES_PER_EXECUTION, _OVERLAP = 1024, 64


def stream_batches(
    uri: str, split: Split, sampler: Sampler, transform: Transform, on_corrupt: OnCorrupt = "stop"
) -> Generator[Batch]:
    """Yields the sampler's batches in order, each checked against the rows that the sampler asked for. Needs Ray.

    on_corrupt: "quarantine" leaves out images whose bytes have changed or can't be decoded; "stop" raises DatasetError.
    Raises ExactnessError if a row is missing, repeated or out of order.
    """
    return ray_source(StreamPlan(uri, split, sampler, transform, on_corrupt))(lambda: False)


def ray_source(plan: StreamPlan) -> Source:
    """Returns what makes `stream_batches`."""

    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        import ray

        sampler = plan.sampler
        if not len(sampler):
            return
        index = plan.index()
        task = BatchTask(ray.put(index), sampler, plan.transform, plan.on_corrupt)
        with closing(_blocks(task, len(sampler), is_closed)) as blocks:
            yield from checked_batches(blocks, sampler, index.key_hash)

    return source


def _blocks(task: BatchTask, num_batches: int, is_closed: Callable[[], bool]) -> Generator[Block]:
    """Yields the blocks of all batches, from one execution of Ray Data after the other."""
    size = BATCHES_PER_EXECUTION
    ranges = [range(first, min(first + size, num_batches)) for first in range(0, num_batches, size)]
    fetchers = [_Fetcher(task, ranges[0])]
    try:
        for number, numbers in enumerate(ranges):
            for count, block in enumerate(fetchers[-1].blocks(is_closed)):
                if count == max(0, len(numbers) - _OVERLAP) and number + 1 < len(ranges):
                    fetchers.append(_Fetcher(task, ranges[number + 1]))
                    fetchers.reverse()  # the one in use stays last
                yield block
            fetchers.pop().close()
    finally:
        for fetcher in fetchers:
            fetcher.close()


class _Fetcher:
    """One execution of Ray Data, and a thread that fetches its blocks a little ahead of the consumer."""

    def __init__(self, task: BatchTask, numbers: range) -> None:
        self._fetched: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=_BLOCKS_AHEAD)
        self._closed = threading.Event()
        arguments = (task, numbers)
        self._thread = threading.Thread(target=self._fetch, args=arguments, daemon=True, name="fetch-blocks")
        self._thread.start()

    def blocks(self, is_closed: Callable[[], bool]) -> Iterator[Block]:
        """Yields the blocks; raises what the execution raised, and ConsumerClosedError if nobody listens any more."""
        while (item := self._next(is_closed)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _next(self, is_closed: Callable[[], bool]) -> Block | BaseException | None:
        while not is_closed():
            with suppress(queue.Empty):
                return self._fetched.get(timeout=0.2)
        raise ConsumerClosedError

    def close(self) -> None:
        """Stops the execution, also before its end."""
        self._closed.set()
        self._thread.join(timeout=10)  # a thread that asks for blocks after ray.shutdown() would end the process

    def _fetch(self, task: BatchTask, numbers: range) -> None:
        try:
            with closing(_execute(task, numbers)) as blocks:
                for block in blocks:
                    self._put(block)
                    if self._closed.is_set():
                        break
            self._put(None)
        except BaseException as error:  # raised again in the consumer's thread
            self._put(error)

    def _put(self, item: Block | BaseException | None) -> None:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._fetched.put(item, timeout=0.1)
                return


def _execute(task: BatchTask, numbers: range) -> Generator[Block]:
    return map_in_order(numbers, lambda source: source.map_batches(task, batch_size=1, num_cpus=TASK_CPUS))


def checked_batches(blocks: Iterator[Block], sampler: Sampler, keys: Keys) -> Iterator[Batch]:
    """Yields the batches in `blocks`, any number in a block, after comparing each with the sampler.

    keys: uint64, hashes of the keys of all rows of the split. Raises ExactnessError if a batch is missing, repeated,
    out of order or has other rows; and the PipelineError that a task reported.
    """
    expected_index = 0
    for block in blocks:
        for number, index in enumerate(block["index"].tolist()):
            columns = {name: column[number] for name, column in block.items()}
            if columns["error"]:
                name, _, text = columns["error"].partition(" ")
                raise getattr(errors, name)(text)
            expected = sampler.rows(expected_index) if expected_index < len(sampler) else np.empty(0, dtype=np.int64)
            if index != expected_index or not np.array_equal(columns["row"], expected):
                raise ExactnessError(
                    f"received batch {index} with rows {columns['row'][:8]}..., "
                    f"expected batch {expected_index} with rows {expected[:8]}..."
                )
            yield batch_from_columns(index, columns, keys, sampler.epochs(index))
            expected_index += 1
    if expected_index != len(sampler):
        raise ExactnessError(f"the stream ended after {expected_index} of {len(sampler)} batches")
