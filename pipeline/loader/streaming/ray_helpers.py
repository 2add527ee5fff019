"""Helpers of a stream: Ray Data tasks on the cluster's nodes where no rank runs.

The tasks belong to one execution of Ray Data in an actor on the rank's node. Its source yields the numbers of the
batches that the rank asks for, as it asks; the rank fetches what tasks have made from their nodes by itself. Ray Data
keeps some kilobytes of every batch that an execution made, so the actor is replaced from time to time.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from pipeline.cluster.ray_tasks import TASK_CPUS
from pipeline.cluster.resources import SpareNodes, spare_nodes, this_node
from pipeline.loader.streaming.helped import Columns, batch_bytes
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.ray_execution import Execution, drained
from pipeline.loader.streaming.ray_task import BatchTask

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 5.0  # A stream that is shorter gets no help: processes of tasks take about as long to start.
_LOOK_SECONDS = 10.0  # between looks for nodes that have come
_BATCHES_PER_ACTOR = 10_000  # of which it keeps about 70 MB in the end
_END_SECONDS = 5.0  # that an execution has to end by itself: as long as a batch takes that tasks have begun
_MOST_FAILURES = 3  # one after the other, without a batch in between
_MOST_TEXT = 300  # characters


def tasks_of_rank(nodes: SpareNodes, world_size: int) -> int:
    """Returns how many tasks make batches of one rank at a time: its share of the nodes' CPUs, and at least one."""
    return max(1, int(nodes.cpus / TASK_CPUS / world_size))


class RayHelpers:
    """Has tasks on spare nodes make batches. A thread talks to Ray; what it does is in `_serve`.

    rank_nodes: ids of the nodes on which ranks run. changed: called when something has arrived.
    """

    def __init__(self, plan: StreamPlan, rank_nodes: Collection[str], changed: Callable[[], None]) -> None:
        self._plan, self._rank_nodes, self._changed = plan, frozenset(rank_nodes), changed
        self._execution: Any = None  # the actor's handle, while it takes numbers
        self._most = 0
        self._asked: set[int] = set()  # of the tasks, and not arrived
        self._lock = threading.Lock()  # of the three above
        self._arrivals: queue.SimpleQueue[tuple[int, Columns | None]] = queue.SimpleQueue()
        self._called, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="ray-helpers")
        self._thread.start()

    def most(self) -> int:
        """Returns how many batches tasks may have to make at a time; 0 while there is no node for them."""
        return self._most

    def call(self) -> None:
        """Says that help is wanted; tasks start after the first call."""
        self._called.set()

    def ask(self, number: int) -> None:
        """Asks for a batch."""
        with self._lock:
            if self._execution is None:  # it has ended since `most` was asked
                self._arrivals.put((number, None))
                return
            self._asked.add(number)
            self._execution.ask.remote(number)

    def arrived(self) -> list[tuple[int, Columns | None]]:
        """Returns (number, columns) of what has arrived since the last call; None for what won't arrive."""
        return drained(self._arrivals)

    def close(self) -> None:
        """Ends the tasks."""
        self._closed.set()
        self._called.set()
        self._thread.join(timeout=10)  # a thread that asks for objects after ray.shutdown() would end the process

    # --- the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._closed.wait(_PATIENCE_SECONDS)
        failures = 0
        while True:
            self._called.clear()
            if self._closed.is_set():  # looked at in this order, for `close` sets both: else its call could be cleared
                return
            self._called.wait()
            made, why = 0, ""
            try:
                nodes = spare_nodes(self._rank_nodes)
                if self._closed.is_set() or not nodes.ids:
                    self._closed.wait(_LOOK_SECONDS)
                    continue
                made, why = self._serve(nodes)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            failures = failures + 1 if why and not made else 0
            if why and not self._closed.is_set():
                text = " ".join(why.split())[-_MOST_TEXT:]  # of a traceback the end says most
                _log.warning("tasks on other nodes failed (%s); threads make their batches", text)
                if failures == _MOST_FAILURES:
                    _log.warning("tasks on other nodes failed %d times in a row: no more are started", failures)
                    return
                self._closed.wait(_LOOK_SECONDS)

    def _serve(self, nodes: SpareNodes) -> tuple[int, str]:
        """Runs one execution on some nodes until it should be replaced. Returns the batches that it made, and why it
        failed, if it did.
        """
        import ray

        ranks = self._plan.sampler.world_size
        share = int(nodes.store_bytes / 2 / ranks)  # the other half for batches on their way
        num_tasks = tasks_of_rank(nodes, ranks)
        index = ray.put(self._plan.index())
        plan = self._plan
        task = BatchTask(index, plan.sampler, plan.transform, plan.on_corrupt)
        execution = Execution.on_node(this_node(), task, nodes.ids, num_tasks, share)
        looked, count = time.monotonic(), 0
        taking, blocks = execution.take.remote(), list[Any]()
        try:
            while not self._closed.is_set() and count < _BATCHES_PER_ACTOR:
                ready, _ = ray.wait([taking, *blocks], num_returns=1, timeout=0.2, fetch_local=True)
                if taking in ready:
                    refs, error = ray.get(taking)
                    if error:
                        return count, error
                    blocks += refs
                    taking = execution.take.remote()
                    if self._execution is None:
                        self._begin(execution, max(1, min(2 * num_tasks, share // batch_bytes(plan))))
                for block in [each for each in blocks if each in ready]:
                    blocks.remove(block)
                    if error := self._receive(ray.get(block)):
                        return count, error
                    count += 1
                if time.monotonic() - looked > _LOOK_SECONDS:
                    looked, now = time.monotonic(), spare_nodes(self._rank_nodes)
                    if set(now.ids) - set(nodes.ids) or not set(now.ids) & set(nodes.ids):
                        break
        finally:
            self._end()
            ray.wait([execution.finish.remote()], timeout=_END_SECONDS)
            ray.kill(execution)
        return count, ""

    def _begin(self, execution: Any, most: int) -> None:
        with self._lock:
            self._execution, self._most = execution, most
        self._changed()

    def _end(self) -> None:
        with self._lock:
            self._execution, self._most = None, 0
            for number in self._asked:
                self._arrivals.put((number, None))
            self._asked.clear()
        self._changed()

    def _receive(self, block: Any) -> str:
        """Takes a block that a task has made. Returns why the task has failed, if it did."""
        from ray.data.block import BlockAccessor

        columns = {name: column[0] for name, column in BlockAccessor.for_block(block).to_numpy().items()}
        number = int(columns.pop("index"))
        if error := str(columns.pop("error")):
            return error  # the number is among those that `_end` gives up
        with self._lock:
            self._asked.discard(number)
        self._arrivals.put((number, columns))
        self._changed()
        return ""
