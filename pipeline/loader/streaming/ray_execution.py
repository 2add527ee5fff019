"""An execution of Ray Data whose numbers come while it runs, in an actor."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.cluster.ray_tasks import TASK_CPUS
from pipeline.cluster.session import quieten_ray

_WAIT_SECONDS = 0.5
T = TypeVar("T")


class Execution:
    """Makes batches by tasks on some nodes; an actor.

    task: makes a row of columns from {"id": int64 [1]}. nodes: ids of the nodes where tasks run. num_tasks: that run at
    a time. store_bytes: of the cluster's object store for what tasks have made.
    """

    def __init__(self, task: Any, nodes: Sequence[str], num_tasks: int, store_bytes: int) -> None:
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._error = ""
        import ray

        arguments = (ray.get_runtime_context().current_actor, task, nodes, num_tasks, store_bytes)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True, name="execution")
        self._thread.start()

    @classmethod
    def on_node(cls, node: str, *arguments: Any) -> Any:
        """Returns the handle of a new actor on a node, which starts meanwhile. It takes no CPU."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node, soft=True)
        # Calls at a time: one of the source, one of the rank for results, and those that ask.
        actor = ray.remote(cls).options(num_cpus=0, max_concurrency=4, scheduling_strategy=here)
        return actor.remote(*arguments)

    def ask(self, number: int) -> None:
        """Called by the rank: has a task make a batch."""
        self._asked.put(number)

    def take(self) -> tuple[list[Any], str]:
        """Called by the rank: returns ObjectRefs of blocks that tasks have made since, after a short wait for them; and
        why the execution has failed, if it has.
        """
        refs = []
        with suppress(queue.Empty):
            refs.append(self._made.get(timeout=_WAIT_SECONDS))
        return [*refs, *drained(self._made)], self._error

    def finish(self) -> None:
        """Called by the rank: lets the execution end by itself, and returns when it has ended.

        An execution that is killed keeps its CPUs in the books of Ray Data for three minutes, in which another one may
        get none (AUTOSCALING_REQUEST_EXPIRE_TIME_S of Ray 2.60).
        """
        drained(self._asked)
        self._asked.put(None)
        self._thread.join()

    def numbers(self) -> list[int | None]:
        """Called by the source: returns the numbers that were asked for since, at least one; None at the end."""
        return [self._asked.get(), *drained(self._asked)]

    def _run(self, me: Any, task: Any, nodes: Sequence[str], num_tasks: int, store_bytes: int) -> None:
        import ray
        from ray.data import DataContext, ExecutionResources

        quieten_ray()
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.target_max_block_size = 1  # each row is a block, so that a task yields it at once
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=store_bytes)
        context.issue_detectors_config.detectors = []  # they warn of memory that was asked for
        here = ray.get_runtime_context().get_node_id()
        try:
            with DataContext.current(context):  # a data set keeps the context in which it was made
                source = ray.data.read_datasource(
                    _source(me), override_num_blocks=1, num_cpus=0, label_selector=_one_of([here])
                )
                made = source.map_batches(
                    task, batch_size=1, num_cpus=TASK_CPUS, concurrency=num_tasks, label_selector=_one_of(nodes)
                )
            for bundle in made.iter_internal_ref_bundles():
                for entry in bundle.blocks:
                    self._made.put(entry.ref)
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"


def drained(items: queue.SimpleQueue[T]) -> list[T]:
    """Takes all that is in a queue now, and returns it in its order."""
    found = []
    with suppress(queue.Empty):
        while True:
            found.append(items.get_nowait())
    return found


def _one_of(nodes: Sequence[str]) -> dict[str, str]:
    """Returns Ray's selector of some nodes."""
    return {"ray.io/node-id": f"in({','.join(nodes)})"}


def _source(execution: Any) -> Any:
    """Returns a source of Ray Data whose one task yields a block {"id": int64 [1]} for each number asked for."""
    import pyarrow as pa
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Numbers(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *arguments: Any, **keywords: Any) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

    def read() -> Iterator[pa.Table]:
        import ray

        while True:
            for number in ray.get(execution.numbers.remote()):
                if number is None:
                    return
                yield pa.table({"id": [number]})

    return Numbers()
