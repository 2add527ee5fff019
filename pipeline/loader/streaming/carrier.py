"""Who makes the batches of a stream: threads of the rank's process, and Ray Data tasks on nodes where no rank runs."""

from collections.abc import Callable, Collection
from functools import partial

import torch

from pipeline.cluster.ray_tasks import local_processes, ray_is_initialized
from pipeline.cluster.resources import node_store_bytes, spare_nodes
from pipeline.core.shares import counted
from pipeline.loader.streaming.helped import helped_source
from pipeline.loader.streaming.plan import Source, StreamPlan
from pipeline.loader.streaming.ray_helpers import RayHelpers, tasks_of_rank
from pipeline.loader.streaming.threads import decode_threads, thread_source
from pipeline.storage import files

_AHEAD_BYTES = 512 << 20  # of each rank; a guess, not measured


def stream_source(
    plan: StreamPlan, device: torch.device, rank_nodes: Collection[str], tell: Callable[[str], None]
) -> Source:
    """Returns what makes the plan's batches for `device`, in their order and the same whoever makes them.

    Threads of this process make them, without Ray. In a Ray session, tasks on nodes where no rank runs help while
    threads are behind. rank_nodes: ids of the nodes on which ranks run. tell: receives a line that says how threads and
    tasks share the batches.
    """
    pinned = device.type == "cuda"
    if not ray_is_initialized():
        return thread_source(plan, pinned)
    # What tasks have made lies in the object store of the rank's node, which its ranks share, half at most.
    ahead_bytes = min(_AHEAD_BYTES, int(node_store_bytes() / 2 / local_processes()))
    return helped_source(plan, pinned, partial(RayHelpers, plan, rank_nodes), ahead_bytes, tell)


def carrier_line(uri: str, rank_nodes: Collection[str], world_size: int) -> str:
    """Returns a line that says who makes the batches of a data set's streams, and how many at a time."""
    threads = decode_threads(remote=not files.is_local(uri))
    line = f"batches: by {threads} threads in each training process"
    if threads == 1:
        line = "batches: by one thread in each training process"
    if not (spare := spare_nodes(rank_nodes)).ids:
        return line
    tasks, nodes = tasks_of_rank(spare, world_size), len(spare.ids)
    return (
        f"{line}; while they are behind, by {counted(tasks, 'task')} for each on "
        f"{counted(nodes, 'node that does', 'nodes that do')}n't train, too"
    )
