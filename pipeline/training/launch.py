"""Start of a training run on Ray Train: checks the job, claims the run's folder, and runs the workers."""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from pipeline.cluster.ray_train import fit_trainer, scaling_config
from pipeline.config.builtin import recipes
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import StoppedError
from pipeline.core.progress import message
from pipeline.core.variables import environment_variables
from pipeline.dataset.manifest import Manifest
from pipeline.loader.row_groups.estimate import check_cache_size
from pipeline.loader.samplers import training_split
from pipeline.models.distillation import Teacher
from pipeline.models.identity import check_identity
from pipeline.storage import files
from pipeline.storage.places import claim_folder
from pipeline.training.job import TrainJob
from pipeline.training.loop import train_loop
from pipeline.training.resume import CONFIG_NAME
from pipeline.training.safeguards.restart_policy import RestartPolicy

_log = logging.getLogger(__name__)
_FEW_IMAGES = 32  # of a step, for one worker

# An elastic run also asks for places on nodes that have just gone, and waits this long for them; Ray's default is 60 s.
_ELASTIC_START_SECONDS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}


def check_job(job: TrainJob) -> Manifest:
    """Returns the data set's manifest. Raises a PipelineError if the job can't work, before anything is started."""
    data = job.read_manifest()
    parts = training_split(job.dataset, data, job.recipe, job.hold_out)
    workers = max(1, job.num_workers, job.max_workers)
    check_batch(job.recipe, workers, parts.epoch_rows)
    check_cache_size(job.cache, job.dataset, data, job.recipe, workers)
    if job.teacher:
        Teacher(job.teacher.uri, data.classes, job.recipe)
    return data


def few_images(recipe: Recipe, workers: int) -> list[str]:
    """Returns a warning if each of several workers gets fewer than 32 images of a step, with the remedy; else nothing.

    Goyal et al. (arXiv 1706.02677, section 4.2) give 32 to a worker: BatchNorm's statistics of fewer are noisy, and a
    GPU spends more of a step on starting operations than on computing them.
    """
    batch = recipe.global_batch_size
    if workers < 2 or batch // workers >= _FEW_IMAGES:
        return []
    larger = [
        other
        for other in recipes.values()
        if other.model == recipe.model and other.global_batch_size >= _FEW_IMAGES * workers
    ]
    # Those of as many epochs first: the same training in larger batches.
    larger.sort(key=lambda other: (other.epochs != recipe.epochs, other.global_batch_size))
    remedies = [f"--workers {max(1, batch // _FEW_IMAGES)}", *(f"--recipe {other.name}" for other in larger[:2])]
    return [
        f"{workers} workers share global_batch_size={batch}: {batch // workers} images each, and with fewer than "
        f"{_FEW_IMAGES} BatchNorm is noisy and GPUs wait; use {' or '.join(remedies)}"
    ]


def claim_run(job: TrainJob, data: Manifest) -> None:
    """Writes the run's identity at its first start. Raises CheckpointError if the folder holds another run."""
    place, mine = files.join(job.run, CONFIG_NAME), job.identity(data.digest)
    check_identity(job.run, claim_folder(place, mine), mine)


def run_training(job: TrainJob, loop: Callable[[dict[str, Any]], None] = train_loop, **config: Any) -> None:
    """Runs the workers of a job; returns when the outputs lie in the run.

    Needs a Ray session if the job has workers. loop: what each worker calls with
    {"job": job, **config}. Raises the PipelineError that a worker raised, if it is one. Ctrl-C,
    SIGTERM and SIGHUP end the run after its running step, with a checkpoint; then they have their usual effect.
    """
    import ray.train
    import ray.train.torch

    filesystem, path = files.open_filesystem(job.run)
    parent, name = os.path.split(path)
    elastic = job.max_workers > job.num_workers > 0
    workers = (job.num_workers, job.max_workers) if elastic else job.num_workers
    trainer = ray.train.torch.TorchTrainer(
        loop,
        train_loop_config={"job": job, **config},
        scaling_config=scaling_config(workers, job.use_gpu, job.cpus_per_worker, job.resize_seconds),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # no limit here: RestartPolicy ends the run
            callbacks=[RestartPolicy(job.run).as_callback()] if job.num_workers else [],
        ),
    )
    # Ray Train copies its variables to the controller when the run starts; this process doesn't keep them.
    with environment_variables(_ELASTIC_START_SECONDS if elastic else {}, keep=True):
        _fit_or_stop(job, fit_trainer if job.num_workers else lambda trainer: trainer.fit(), trainer)


def _fit_or_stop(job: TrainJob, fit: Callable[[Any], None], trainer: Any) -> None:
    """Runs a trainer. A run that a signal has stopped says where, and the signal then has its usual effect."""

    def tell() -> None:
        if job.stop.signal == signal.SIGALRM:
            message(job.progress, "the time is up; stopping after this step, with a checkpoint")
        else:
            message(job.progress, "stopping after this step, with a checkpoint; Ctrl-C again leaves at once")

    try:
        with job.stop.on_signals(tell):
            fit(trainer)
    except StoppedError as stopped:
        _log.info("%s", stopped)
        job.stop.deliver()
        raise
