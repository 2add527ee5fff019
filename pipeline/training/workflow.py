"""Training from start to end: data, a recipe and options in; a finished run with its result and report out."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.cluster.address import cluster_address
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.resources import Device, check_machine, count_gpus, workers_use_gpus
from pipeline.cluster.session import ray_in_process, ray_session
from pipeline.config.choices import OnCorrupt
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import RecipeError
from pipeline.core.interrupts import StopRequest
from pipeline.core.progress import Progress, begin, silent
from pipeline.core.shares import counted
from pipeline.dataset.api import Dataset, open_dataset
from pipeline.dataset.cache_folder import resolve_cache
from pipeline.ingestion.prepare import prepare_dataset
from pipeline.storage import files
from pipeline.storage.places import check_folder
from pipeline.training.job import TrainJob, Weights, fit_to_cluster, teacher_weights
from pipeline.training.trackers.base import MakeTracker
from pipeline.training.trackers.defaults import default_trackers

_log = logging.getLogger(__name__)

_LEAST_IMAGES = 8  # of a batch, on each GPU


@dataclass(frozen=True)
class TrainOptions:
    """How a run is carried out, beside its data, recipe and workers. Raises RecipeError for values that can't work."""

    seed: int = 0
    """Seed of the initial weights, the order of rows, and augmentation."""

    device: Device = "auto"
    """Device of the workers: "gpu", "cpu", or "auto" for GPUs if there is one for each."""

    compile: bool = False
    """Whether to compile the network by torch.compile, for each size of batch, before the first step. For long runs on
    a GPU: it takes time at each start. Not part of a run's identity."""

    fsdp: bool = False
    """Whether each worker keeps a part of weights, gradients and optimiser states (FSDP2), for a network that doesn't
    fit into one GPU. Slower than without it. Not part of a run's identity."""

    deterministic: bool = False
    """Whether a GPU repeats its numbers to the last bit, at the cost of speed, by torch's deterministic algorithms. A
    resumed run then ends with the same weights on GPUs of the same kind. CPUs do so in any case."""

    max_workers: int | None = None
    """Largest number of workers of an elastic run. It grows and shrinks with the cluster between the number of workers
    and this. None: the number of workers is fixed."""

    wait_minutes: float = 0
    """Minutes to wait for nodes that an autoscaler starts. 0: the cluster must have room at once."""

    hang_minutes: float = 30
    """Minutes without progress after which a worker ends itself, to be restarted; 0 for never. The longest validation
    batch, checkpoint or read must fit in."""

    hold_out: float = 0.0
    """Share of the training split, from 0 to below 1, to evaluate on instead of the validation split, and not to train
    on. For searches: the validation split stays untouched."""

    pretrained: str | None = None
    """Weights to start from: "timm" for the published ones of the recipe's network, by timm or torchvision; NAME of a
    network of theirs; path or URI of a .safetensors file, or of a .pt file without pickled code; "none". Without it, a
    recipe that is given starts from none, and one that is chosen from what suits it. A last layer for other classes is
    replaced by a new one."""

    teacher: str | None = None
    """Finished run to learn from, beside the labels: path or URI (knowledge distillation, Hinton et al.,
    arXiv 1503.02531)."""

    on_corrupt: OnCorrupt = "stop"
    """What to do about an image whose bytes have changed since ingest: "stop", or "quarantine" to go on without it.
    Quarantined images are counted and named in the result."""

    max_skipped_steps: int = 0
    """Steps that may be skipped because loss or gradient isn't finite; one more ends the run. A skipped step updates
    nothing, and its loss doesn't count."""

    checkpoint_seconds: float | None = None
    """Least seconds between two checkpoints: those that are due earlier are left out, but not the last step's,
    nor one when the run is stopped. None: 10 on a GPU, and on a CPU all are written."""

    cache: str | None = None
    """Folder on each node's own disk that keeps what is read of object storage, and into which it is fetched ahead."""

    cache_size: str | None = None
    """Most that `cache` holds, such as 20GB or 500MB; what is needed last goes first, and 0 keeps nothing. None: what
    the disk has, but 2 GiB."""

    trace_rows: bool = False
    """Whether to write the keys of every step's images to RUN/rows/. Proves that no row was lost or doubled."""

    trackers: tuple[MakeTracker, ...] = field(default_factory=default_trackers)
    """Functions that make a tracker each, `(job, step) -> tracker`. The default: Ray's metrics and TensorBoard."""

    command: str = ""
    """Command line that repeats the run, for its report; empty where the run isn't begun by a command."""

    def __post_init__(self) -> None:
        for name in ("max_skipped_steps", "hang_minutes", "wait_minutes", "checkpoint_seconds"):
            if (getattr(self, name) or 0) < 0:
                raise RecipeError(f"{name.replace('_', '-')}={getattr(self, name)} must be 0 or more")


def train(
    data: str | os.PathLike[str] | Dataset | None = None,
    run: str | os.PathLike[str] | None = None,
    recipe: str | Recipe | None = None,
    *,
    workers: int | None = None,
    options: TrainOptions | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Trains and evaluates a model, writes the run, and returns the content of its `result.json`.

        result = train("photos/", "runs/photos")
        print(result["val"]["top1"])

    data: a data set, or raw images (class folders, a tar, an archive), which are ingested once; None for CIFAR-10,
    downloaded once. run: folder for weights, checkpoints, report; the same again continues a run that was interrupted,
    and returns the result of a finished one; None for a new one in runs/. Paths or URIs, which all nodes must reach.
    recipe: a name of `pipeline.recipes`, a file, or a `Recipe`; None for the one that `run` was begun with, or else one
    that is chosen for the data and this machine. workers: training processes; 0 for this process, None for one on each
    GPU. options: seed, held-out share and the like. progress: called with each stage's progress.

    Ray is started, or the cluster of RAY_ADDRESS joined, if there are workers, and ended after. In a script,
    call it below `if __name__ == "__main__":`, as with every library that starts processes. Raises a PipelineError,
    with the remedy, for what the user can mend.
    """
    options = options or TrainOptions()
    chosen = make_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(data, Dataset):
        data = open_dataset(prepare_dataset(None if data is None else os.fspath(data), progress=progress))
    place = None if run is None else files.absolute(os.fspath(run))
    if chosen is None:
        chosen, options = choose_settings(data, place, options)
    place = place or files.absolute(new_run(chosen, data.manifest.name))
    job = replace(make_job(data.uri, place, chosen, workers, options), manifest=data.manifest)
    return train_job(job, options.wait_minutes, progress)


def choose_settings(
    data: Dataset, run: str | None, options: TrainOptions, change: Callable[[Recipe], Recipe] = lambda recipe: recipe
) -> tuple[Recipe, TrainOptions]:
    """Returns recipe and options of a run that isn't given a recipe, and logs what was chosen and why.

    run: absolute URI. A run that was begun before keeps its recipe. change: what flags change of a recipe.
    """
    from pipeline.training.automatic.settings import automatic_recipe

    recipe, pretrained = automatic_recipe(
        data.uri, data.manifest, run, options.pretrained, change, options.device, options.hold_out
    )
    return recipe, replace(options, pretrained=pretrained)


def new_run(recipe: Recipe, dataset_name: str) -> str:
    """Returns the folder of a run that isn't given one: runs/RECIPE-DATASET-TIME in the working directory."""
    what = f"{recipe.name}-{dataset_name}".replace("/", "-")  # a recipe's name may be any text
    name = f"runs/{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{number}" for number in range(2, 100)))  # others may have started in the same second
    return next((each for each in names if not os.path.lexists(each)), name)


def make_job(
    dataset: str, run: str, recipe: Recipe, workers: int | None, options: TrainOptions, start: Weights | None = None
) -> TrainJob:
    """Returns the job of a run. dataset, run: absolute URIs; workers: None for one on each GPU.

    start: weights to start from, instead of those of `options.pretrained`; the recipe's normalisation must be theirs.

    Raises RecipeError if workers and batch size or network and image size don't fit together, ClusterError for more
    workers than this machine can hold, StorageError if the run's folder can't be written, CheckpointError if the
    weights to start from, or the teacher's, don't exist.
    """
    from pipeline.models.factory import check_image_size  # loads torch
    from pipeline.training.automatic.weights import start_weights

    check_folder(run, "run-dir")
    gpus = count_gpus()
    workers = default_workers(recipe, gpus) if workers is None else workers
    check_workers(recipe, workers, options.max_workers)
    if options.fsdp:
        check_fsdp(recipe, workers, options.compile or recipe.compile)
    check_machine(workers, options.device)
    check_image_size(recipe)
    if start is None:
        recipe, start = start_weights(options.pretrained, recipe, run)
    return TrainJob(
        dataset,
        run,
        recipe,
        options.seed,
        workers,
        max_workers=options.max_workers or 0,
        use_gpu=workers_use_gpus(options.device, workers, gpus),
        compile=options.compile,
        fsdp=options.fsdp,
        deterministic=options.deterministic,
        hold_out=options.hold_out,
        trace_rows=options.trace_rows,
        cache=resolve_cache(options.cache, options.cache_size),
        on_corrupt=options.on_corrupt,
        max_skipped_steps=options.max_skipped_steps,
        pretrained=start,
        teacher=teacher_weights(options.teacher) if options.teacher else None,
        hang_seconds=60 * options.hang_minutes,
        checkpoint_seconds=options.checkpoint_seconds,
        command=options.command,
        trackers=options.trackers,
    )


def default_workers(recipe: Recipe, gpus: int) -> int:
    """Returns the training processes of a run that isn't told: one a GPU, but no more than get eight images of a batch.

    BatchNorm's statistics of fewer images are noise.
    """
    return min(gpus, max(1, recipe.global_batch_size // _LEAST_IMAGES))


def check_workers(recipe: Recipe, workers: int | None, max_workers: int | None) -> None:
    """Raises RecipeError unless the numbers of workers can share the recipe's batches. None: not known yet."""
    if workers is not None and workers < 0:
        raise RecipeError(f"workers={workers} must be 0 (this process) or more")
    if max_workers is not None and max_workers < max(1, workers or 0):
        raise RecipeError(f"max-workers={max_workers} must be at least workers={workers or 1}")
    check_batch(recipe, max(1, workers or 1, max_workers or 1))


def check_fsdp(recipe: Recipe, workers: int, compiles: bool) -> None:
    """Raises RecipeError where a run can't be spread over its workers by FSDP."""
    if workers < 2:
        raise RecipeError(f"fsdp spreads a network over workers, and there are {workers}; give --workers 2 or more")
    if compiles:
        raise RecipeError("fsdp and compile don't go together; leave one of them out")
    whole = {  # what needs a tensor as a whole
        f"optimizer={recipe.optimizer}": recipe.optimizer in ("muon", "lars", "lamb"),
        f"adaptive_clip={recipe.adaptive_clip:g}": recipe.adaptive_clip > 0,
        f"sam_radius={recipe.sam_radius:g}": recipe.sam_radius > 0,
    }
    for setting, is_asked in whole.items():
        if is_asked:
            raise RecipeError(
                f"fsdp and {setting} don't go together: it needs whole tensors; change it "
                "(optimizer=adamw and nesterov go), or leave fsdp out"
            )


def train_job(job: TrainJob, wait_minutes: float = 0, progress: Progress = silent) -> dict[str, Any]:
    """Trains a job unless it is finished, writes `report.html` and `result.json`, and returns the latter's content.

    Uses the running Ray session, or starts one for workers. wait_minutes: for nodes to join.
    Raises ClusterError if the cluster has no room, and what `run_training` raises.
    """
    with training_session(job, wait_minutes, progress) as ready:
        return _train_and_report(ready)


@contextmanager
def training_session(job: TrainJob, wait_minutes: float = 0, progress: Progress = silent) -> Iterator[TrainJob]:
    """Yields the job as it can be run: with the CPUs of its workers, and a progress that they can call.

    Uses the running Ray session, or starts one for the block if there are workers. Without workers a run that streams
    joins the cluster of RAY_ADDRESS, whose nodes help. wait_minutes: for nodes to join. Raises ClusterError if the
    cluster has no room.
    """
    streams_from_cluster = job.recipe.residency == "stream" and cluster_address() is not None
    if not job.num_workers and not streams_from_cluster:
        begin(progress, "loading PyTorch")
        with ray_in_process():
            yield replace(job, progress=progress, stop=StopRequest())
        return
    begin(progress, "starting Ray")
    with ray_session(job.num_workers), ExitStack() as stack:
        job = fit_to_cluster(job, wait_minutes, progress)
        begin(progress, f"starting {counted(job.num_workers, 'worker')}" if job.num_workers else "preparing the run")
        stop = StopRequest()
        remote = stack.enter_context(remote_progress(progress, stop)) if job.num_workers else progress
        yield replace(job, progress=remote, stop=stop)


def _train_and_report(job: TrainJob) -> dict[str, Any]:
    from pipeline.evaluation.predictions import read_predictions
    from pipeline.training.automatic import data_facts, run_warnings
    from pipeline.training.launch import check_job, claim_run, few_images, run_training
    from pipeline.training.outputs.report import where_to_look, write_report
    from pipeline.training.outputs.result import build_result, read_result, write_result

    _log.info("run %s", job.run)
    data = check_job(job)
    claim_run(job, data)
    finished = read_result(job.run)
    if finished is not None:
        _log.info("this run is finished already; give another run directory or name to train again")
        return finished
    warnings = run_warnings(job.recipe, data_facts(job.dataset, data, job.hold_out))
    warnings += few_images(job.recipe, max(job.num_workers, job.max_workers))
    for line in warnings:
        _log.warning("warning: %s", line)
    for line in where_to_look(job):
        _log.info("%s", line)
    run_training(job)
    begin(job.progress, "writing the report")
    result = {**build_result(job, data), "warnings": warnings}
    write_report(job, data, result, read_predictions(job.run)[0])
    write_result(job.run, result)  # last: a run with a result is finished
    return result
