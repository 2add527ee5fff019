"""Resources of a cluster: GPUs, CPUs for each worker, and waiting for nodes that an autoscaler starts."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pipeline.cluster.address import check_cluster, cluster_address
from pipeline.cluster.ray_tasks import ray_is_initialized
from pipeline.cluster.session import check_local_workers, ray_session
from pipeline.core.errors import ClusterError, RecipeError
from pipeline.core.progress import Progress

Device = Literal["auto", "gpu", "cpu"]
# Help of the flags with which several jobs choose resources.
DEVICE_HELP = "device of the workers: gpu, cpu, or auto (gpu if there are enough)"
WAIT_HELP = "minutes to wait for nodes that an autoscaler starts"
_LOOK_EVERY_SECONDS = 2.0


def count_gpus() -> int:
    """Returns the number of GPUs of the cluster that RAY_ADDRESS names, else of this machine."""
    if cluster_address():
        import ray

        with ray_session():
            return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def check_machine(workers: int | None, device: Device = "auto") -> None:
    """Raises ClusterError at once if this machine alone can't hold the workers, or has no GPU for device "gpu".

    workers: None if their number isn't known yet. Where Ray runs already, or a cluster answers at RAY_ADDRESS,
    `wait_for_resources` decides. Raises RecipeError for GPUs without workers.
    """
    if device == "gpu" and workers == 0:
        workers_use_gpus(device, workers, 0)
    if ray_is_initialized():
        return
    if address := cluster_address():
        check_cluster(address)  # here, because libraries that take seconds to load aren't loaded yet
        return
    if device == "gpu" and not (gpus := count_gpus()):
        raise ClusterError(f"device=gpu: {_no_gpu()}; use --device auto or cpu, or name a cluster in RAY_ADDRESS")
    if device == "gpu" and workers and workers > gpus:
        raise ClusterError(
            f"workers={workers} need a GPU each with device=gpu, this machine has {gpus}; use --workers {gpus}"
        )
    check_local_workers(workers or 0)


def _no_gpu() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for CPUs only"
    return f"torch {torch.__version__} finds no GPU on this machine (torch.cuda.device_count() is 0)"


def workers_use_gpus(device: Device, workers: int, gpus: int) -> bool:
    """Returns whether each worker gets a GPU; with device auto, if there are enough. Raises RecipeError."""
    if device == "gpu" and not workers:
        raise RecipeError("device=gpu needs workers; give --workers N")
    return workers > 0 and (device == "gpu" or (device == "auto" and workers <= gpus))


def node_cpus(that_train: bool = False) -> list[float]:
    """Returns the number of CPUs of each node of the cluster; nodes without CPUs for tasks are left out.

    that_train: leave out the nodes for augmentation only (`ray_train.AUGMENT_NODES`), too.
    """
    import ray

    from pipeline.cluster.ray_train import AUGMENT_NODES

    key, value = AUGMENT_NODES
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return [node["Resources"]["CPU"] for node in nodes if not (that_train and node.get("Labels", {}).get(key) == value)]


def this_node() -> str:
    """Returns the id of the cluster's node that this process runs on; empty outside of a Ray session."""
    if not ray_is_initialized():
        return ""
    import ray

    return str(ray.get_runtime_context().get_node_id())


@dataclass(frozen=True)
class SpareNodes:
    """Nodes on which no rank runs, and all their CPUs and bytes of Ray's object store: free for making batches."""

    ids: tuple[str, ...] = ()
    cpus: float = 0.0
    store_bytes: float = 0.0


def spare_nodes(rank_nodes: Collection[str]) -> SpareNodes:
    """Returns the nodes that live, have CPUs for tasks, and on which no rank runs; none outside of a Ray session.

    rank_nodes: ids of the nodes on which ranks run.
    """
    if not ray_is_initialized():
        return SpareNodes()
    import ray

    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in rank_nodes and node["Resources"].get("CPU")
    ]
    ids = tuple(sorted(node["NodeID"] for node in nodes))
    resources = [node["Resources"] for node in nodes]
    cpus, store = (sum(each.get(name, 0.0) for each in resources) for name in ("CPU", "object_store_memory"))
    return SpareNodes(ids, cpus, store)


def node_store_bytes() -> float:
    """Returns the size of Ray's object store on the node that this process runs on; 0 outside of a Ray session."""
    if not (here := this_node()):
        return 0.0
    import ray

    return sum(node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["NodeID"] == here)


def worker_cpus(num_workers: int, use_gpu: bool, nodes: list[float]) -> float:
    """Returns the number of CPUs for each worker: one beside a GPU, else an equal share in whole CPUs, or a fraction.

    nodes: the CPUs of each training node. One CPU stays free for reading. If there are several nodes, the CPUs of the
    largest one stay free, too, so that the run can continue without any one of them. No worker gets more CPUs than a
    node has.
    """
    if use_gpu:
        return 1.0
    left = 1 + (max(nodes) if len(nodes) > 1 else 0)
    share = min((sum(nodes) - left) / num_workers, max(nodes))
    return share if share < 1 else float(int(share))


def wait_for_resources(num_workers: int, use_gpu: bool, minutes: float, progress: Progress) -> None:
    """Asks the autoscaler, if there is one, for nodes for the workers, and waits until they have joined.

    minutes: the time limit. Raises ClusterError after it.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    # Without time to wait, workers make do with fractions of the CPUs that there are.
    kind, needed = ("GPU", num_workers) if use_gpu else ("CPU", num_workers + 1 if minutes else 2)
    deadline = time.monotonic() + 60 * minutes
    asked = False
    try:
        while (there := int(ray.cluster_resources().get(kind, 0))) < needed or not node_cpus():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"workers={num_workers} need {needed} {kind}s, the cluster has {there}; use fewer workers, add "
                    "nodes, or give the autoscaler time: --wait-minutes N"
                )
            if not asked:
                request_resources(bundles=[{"CPU": 1, kind: 1}] * num_workers + [{"CPU": 1}])
                asked = True
            progress("nodes", there, needed, f"{kind}s; waiting for the others")
            time.sleep(_LOOK_EVERY_SECONDS)
    finally:
        if asked:
            request_resources(bundles=[])  # from here on the workers hold the nodes
