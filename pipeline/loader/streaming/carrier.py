"""Who makes the batches of a stream: threads of the rank's process, or Ray Data tasks where nodes help."""

from collections.abc import Collection

import torch

from pipeline.cluster.resources import spare_cpus
from pipeline.loader.streaming.plan import Source, StreamPlan
from pipeline.loader.streaming.ray_stream import ray_source
from pipeline.loader.streaming.threads import decode_threads, thread_source
from pipeline.storage import files


def stream_source(plan: StreamPlan, device: torch.device, rank_nodes: Collection[str]) -> Source:
    """Returns what makes the plan's batches for `device`, in their order and the same whoever makes them.

    Threads of this process make them, without Ray. Where the cluster has nodes on which no rank runs, tasks of Ray Data
    do, on all nodes. rank_nodes: ids of the nodes on which ranks run.
    """
    if spare_cpus(rank_nodes):
        return ray_source(plan)
    return thread_source(plan, pinned=device.type == "cuda")


def carrier_line(uri: str, rank_nodes: Collection[str]) -> str:
    """Returns a line that says who makes the batches of a data set's streams, and how many at a time."""
    if spare := spare_cpus(rank_nodes):
        return f"batches: by tasks on all nodes of the cluster, of which some don't train ({spare:g} CPUs)"
    threads = decode_threads(remote=not files.is_local(uri))
    if threads == 1:
        return "batches: by one thread in each training process"
    return f"batches: by {threads} threads in each training process"
