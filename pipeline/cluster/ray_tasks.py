"""Apply a function to many items: in Ray tasks if there is a session, else in threads of this process."""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

THREADS = 16
TASK_CPUS = 0.5  # two tasks share a CPU: one decodes while the other reads


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_processes() -> int:
    """Returns the number of training processes on this node, as torchrun and Ray Train tell it; otherwise 1."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def task_attempt() -> int:
    """Returns how often Ray has started the task in which this is called before: 0 unless its process has died."""
    from ray._private.worker import global_worker  # Ray has no public function for it

    attempt: int = global_worker.core_worker.get_current_task_attempt_number()
    return attempt


def run_in_thread(call: Callable[[], Any]) -> None:
    """Calls a function in a thread of its own, waits for it, and raises its exception.

    For libraries that install their own SIGINT handler in the main thread: Ray Train's ends the process with status 1.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class _Chunk:
    """A Ray task that calls `function` on the items of one chunk, in threads."""

    function: Callable[[Any], pa.Table]
    chunks: Any  # an ObjectRef of list[list[(number, item)]]
    num_threads: int

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        import ray

        chunk = ray.get(self.chunks)[int(batch["id"][0])]
        return pa.concat_tables(_numbered(self.function, chunk, self.num_threads))


def _numbered(
    function: Callable[[Any], pa.Table], chunk: Sequence[tuple[int, Any]], num_threads: int
) -> Iterator[pa.Table]:
    with ThreadPoolExecutor(num_threads) as pool:
        for (number, _), table in zip(chunk, pool.map(function, [item for _, item in chunk]), strict=True):
            column = pa.array(np.full(table.num_rows, number, dtype=np.int64))
            yield table.append_column("item", column)


def ray_is_initialized() -> bool:
    """Returns whether this process is in a Ray session. Doesn't import Ray."""
    # Ray reads some environment variables when it is imported, and a session sets them before.
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def map_tables(
    function: Callable[[Any], pa.Table],
    items: Sequence[Any],
    schema: pa.Schema,
    done: Callable[[int], None],
    computes: bool = False,
) -> list[pa.Table]:
    """Returns `function(item)`, a table with `schema`, for each item, in the order of the items.

    done: called from time to time with the number of finished items. computes: `function` is limited by the CPU and
    takes memory, so that one call runs on each CPU; otherwise by storage, so that THREADS calls wait at once.
    """
    if len(items) < THREADS or not ray_is_initialized():
        tables = []
        with ThreadPoolExecutor(usable_cpus() if computes else THREADS) as pool:
            for table in pool.map(function, items):
                tables.append(table)
                done(len(tables))
        return tables
    import ray

    numbered = list(enumerate(items))
    chunks = [numbered[start : start + THREADS] for start in range(0, len(items), THREADS)]
    call = _Chunk(function, ray.put(chunks), 1 if computes else THREADS)
    found: dict[int, list[pa.Table]] = {}
    numbers = [{"id": number} for number in range(len(chunks))]
    context = ray.data.DataContext.get_current().copy()
    context.raise_original_map_exception = True  # else Ray Data replaces it by an error without its cause
    context.enable_progress_bars = False  # the caller shows progress of its own
    with ray.data.DataContext.current(context):  # a data set keeps the context in which it was made
        dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(call, batch_size=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for number in batch["item"].unique().to_pylist():
            part = batch.filter(pa.compute.equal(batch["item"], number)).select(schema.names)
            found.setdefault(number, []).append(part.cast(schema))
        done(len(found))
    empty = schema.empty_table()
    return [pa.concat_tables(found.get(number, [empty])) for number in range(len(items))]


def map_in_order(numbers: Sequence[int], stages: Callable[[Any], Any]) -> Generator[dict[str, Any]]:
    """Yields the output of a Ray Data pipeline for each number, in the order of the numbers, as soon as it is complete.

    stages: takes a data set with a row {"id": number} for each number and returns one with a single row for each, which
    becomes a block of its own. Needs a Ray session.
    """
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # each row is a block, so that a task yields it at once
    with ray.data.DataContext.current(context):  # a data set keeps the context in which it was made
        # Not `ray.data.range`: its reads are tasks of their own, which start on half of the CPUs.
        source = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=len(numbers))
        dataset = stages(source)
    # With prefetching, Ray would yield a block only when the next ones are complete, too.
    yield from dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy")
