"""Processes for an evaluation or a batch prediction: how many, on which device, and the Ray session that they need."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline.cluster import resources
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.session import ray_session
from pipeline.core.errors import RecipeError
from pipeline.core.progress import Progress, silent
from pipeline.evaluation.inputs import Workers
from pipeline.evaluation.runner import EvaluateJob


def as_workers(workers: Workers | int | None) -> Workers:
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
        yield replace(job, progress=progress, on_cpu=workers.device == "cpu")
        return
    with ray_session(num), remote_progress(progress) as remote:
        resources.wait_for_resources(num, use_gpu, workers.wait_minutes, progress)
        cpus = resources.worker_cpus(num, use_gpu, resources.node_cpus(that_train=True))
        share = int(100 * cpus) / 100  # rounded down: the shares together must not exceed the cluster's CPUs
        yield replace(job, num_workers=num, use_gpu=use_gpu, cpus_per_worker=share, progress=remote)
