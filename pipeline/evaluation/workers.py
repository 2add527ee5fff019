"""Processes for an evaluation or a batch prediction: how many, on which device, and the Ray session that they need."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.cluster import resources
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.session import ray_session
from pipeline.core.errors import RecipeError
from pipeline.core.progress import Progress, silent
from pipeline.evaluation.runner import EvaluateJob


@dataclass(frozen=True)
class Workers:
    """The processes that hold a copy of the network."""

    num: int | None = None
    """Number of processes. 0 is this process, without Ray. None is one for each GPU of the cluster that RAY_ADDRESS
    names, else of this machine; without GPUs it is 0 for `evaluate` and 1 for `predict`."""
    device: resources.Device = "auto"
    """Device of the processes: "gpu", "cpu", or "auto" for a GPU each if there are enough."""
    wait_minutes: float = 0.0
    """Minutes to wait for nodes that an autoscaler has to start."""

    def __post_init__(self) -> None:
        resources.check_machine(self.num, self.device)  # before the data are looked at


def as_workers(workers: "Workers | int | None") -> "Workers":
    """Returns `workers` itself, or that many. None: the default of `Workers`."""
    return workers if isinstance(workers, Workers) else Workers(workers)


@contextmanager
def evaluation_session(job: EvaluateJob, workers: Workers, progress: Progress = silent) -> Iterator[EvaluateJob]:
    """Yields the job with its workers, their share of the CPUs, and `progress`.

    A Ray session is joined or started while the block runs if there are workers. Raises RecipeError for an impossible
    number of workers, and ClusterError if the cluster has no room for them.
    """
    gpus = resources.count_gpus()
    num = gpus if workers.num is None else workers.num
    if num < 0:
        raise RecipeError(f"workers={num} must be 0 (this process) or more")
    use_gpu = resources.workers_use_gpus(workers.device, num, gpus)
    if not num:
        yield replace(job, progress=progress)
        return
    with ray_session(num), remote_progress(progress) as remote:
        resources.wait_for_resources(num, use_gpu, workers.wait_minutes, progress)
        cpus = resources.worker_cpus(num, use_gpu, resources.node_cpus(that_train=True))
        share = int(100 * cpus) / 100  # rounded down: the shares together must not exceed the cluster's CPUs
        yield replace(job, num_workers=num, use_gpu=use_gpu, cpus_per_worker=share, progress=remote)
