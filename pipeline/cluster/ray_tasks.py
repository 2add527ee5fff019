"""The same function over many items: on the cluster where Ray runs, else in threads of this process."""

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
TASK_CPUS = 0.5  # two tasks on a CPU: one decodes while the other reads, or is between two units


def usable_cpus() -> int:
    """CPUs that this process may use: fewer than the machine's where it is confined to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_thread(call: Callable[[], Any]) -> None:
    """Calls it in a thread of its own, waits, and raises what it raised.

    For what takes Ctrl-C for itself in the main thread: Ray Train ends the process with a bare status 1 there.
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
    """Calls `function` on one chunk of items, in threads, inside a Ray task."""

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
    """Whether this process is in a Ray session."""
    # Not by importing it: a job sets variables that Ray reads when it is imported.
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def map_tables(
    function: Callable[[Any], pa.Table],
    items: Sequence[Any],
    schema: pa.Schema,
    done: Callable[[int], None],
    computes: bool = False,
) -> list[pa.Table]:
    """Returns `function(item)`, a table of `schema`, for each item, in their order.

    done: called now and then with the number of items that are finished. computes: `function` is held up by the CPU,
    and takes memory for it; else by storage, and many calls wait at a time.
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
    ray.data.DataContext.get_current().raise_original_map_exception = True  # else its cause is lost on the way
    dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(call, batch_size=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for number in batch["item"].unique().to_pylist():
            part = batch.filter(pa.compute.equal(batch["item"], number)).select(schema.names)
            found.setdefault(number, []).append(part.cast(schema))
        done(len(found))
    empty = schema.empty_table()
    return [pa.concat_tables(found.get(number, [empty])) for number in range(len(items))]


def map_in_order(numbers: Sequence[int], stages: Callable[[Any], Any]) -> Generator[dict[str, Any]]:
    """Yields the blocks of a Ray Data execution over {"id": number}, in the order of the numbers, each when it is made.

    stages: adds to the data set what makes a row of each number, which can't be split. Needs Ray.
    """
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # so that a task hands over unit by unit
    with ray.data.DataContext.current(context):  # a data set keeps a copy of the context it was made in
        # not `range`, whose reads are tasks of their own and start on half of the CPUs
        source = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=len(numbers))
        dataset = stages(source)
    # Ray's own prefetching gives a block out only when the next ones are there too.
    yield from dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy")
