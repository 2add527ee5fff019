"""What the two training jobs share: a data set ready to train on, a run, a result and a report."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

from jobs.command import Display, console, option, print_table
from pipeline.cluster import resources
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.session import quieten_ray, ray_session
from pipeline.config.choices import MODELS, LossName, OnCorrupt, OptimizerName, ScheduleName
from pipeline.config.presets import make_recipe, recipes
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.manifest import load as load_manifest
from pipeline.ingestion.sources import LAYOUTS, digits
from pipeline.loader import stage_times
from pipeline.storage import files
from pipeline.training.job import fit_to_cluster
from pipeline.training.trackers.base import MakeTracker
from pipeline.training.trackers.mlflow import make_mlflow
from pipeline.training.trackers.prometheus import make_ray_metrics
from pipeline.training.trackers.tensorboard import make_tensorboard

if TYPE_CHECKING:  # torch takes seconds to load, and not every error needs it
    from pipeline.training.job import TrainJob, Weights


def _names(literal: Any) -> str:
    return ", ".join(get_args(literal))


OF_RECIPE, RUN_ROWS = "the recipe's", "shuffle_run_rows"


@dataclass(frozen=True)
class TrainingArgs:
    """Flags of every training job."""

    recipe: Annotated[str | None, option(f"one of {', '.join(recipes)}", "NAME")] = None
    workers: Annotated[int | None, option("training processes; 0: in this one", "N", "one a GPU")] = None
    device: Annotated[resources.Device, option(resources.DEVICE_HELP, "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, option(resources.WAIT_HELP, "N", "0")] = 0
    epochs: Annotated[int | None, option("times each image is seen", "N", OF_RECIPE)] = None
    seed: Annotated[int, option("of weights, order and augmentation", "N", "0")] = 0
    global_batch_size: Annotated[int | None, option("images a step, over all workers", "N", OF_RECIPE)] = None
    learning_rate: Annotated[float | None, option("at its peak", "RATE", OF_RECIPE)] = None
    model: Annotated[str | None, option(f"one of {', '.join(MODELS)}", "NAME", OF_RECIPE)] = None
    optimizer: Annotated[str | None, option(f"one of {_names(OptimizerName)}", "NAME", OF_RECIPE)] = None
    schedule: Annotated[str | None, option(f"one of {_names(ScheduleName)}", "NAME", OF_RECIPE)] = None
    loss: Annotated[str | None, option(f"one of {_names(LossName)}", "NAME", OF_RECIPE)] = None
    layout: Annotated[str, option(f"of raw data: auto, {', '.join(LAYOUTS)}", "NAME", "auto")] = "auto"
    md5: Annotated[str | None, option("expected of a CIFAR archive; any: don't check", "HEX", "the official one")] = (
        None
    )
    on_corrupt: Annotated[
        OnCorrupt, option("stop, or quarantine: go on without images whose bytes have changed", "WHAT", "stop")
    ] = "stop"
    pretrained: Annotated[str | None, option("weights to begin with: .safetensors or plain .pt", "URI", "none")] = None
    hold_out: Annotated[float, option("share of train to evaluate instead of val, untrained on", "X", "0")] = 0.0
    teacher: Annotated[str | None, option("a finished run to learn from, beside the labels", "URI", "none")] = None
    max_workers: Annotated[int | None, option("as many as there is room for, up to this", "N", "--workers")] = None
    max_skipped_steps: Annotated[int, option("steps that aren't finite to leave out before stopping", "N", "0")] = 0
    hang_minutes: Annotated[float, option("without progress before a worker starts again; 0: never", "N", "30")] = 30
    shuffle_run_rows: Annotated[int | None, option("rows that stay together in the order", "N", OF_RECIPE)] = None
    cache: Annotated[str | None, option(resources.CACHE_HELP, "DIR", "none")] = None
    mlflow: Annotated[str | None, option("tracking server to log to, too", "URI", "none")] = None
    trace_rows: Annotated[bool, option("write the keys of every step's images to RUN/rows/", "")] = False

    def make_recipe(self, default: str) -> Recipe:
        """Returns the recipe with the flags' changes. Raises RecipeError."""
        names = ("epochs", "global_batch_size", "learning_rate", "model", "optimizer", "schedule", "loss", RUN_ROWS)
        if self.workers is not None and self.workers < 0:
            raise RecipeError(f"workers={self.workers} must be 0 (this process) or more")
        for name in ("max_skipped_steps", "hang_minutes", "wait_minutes"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name.replace('_', '-')}={getattr(self, name)} must be 0 or more")
        if self.max_workers is not None and self.max_workers < max(1, self.workers or 0):
            raise RecipeError(f"max-workers={self.max_workers} must be at least workers={self.workers or 1}")
        recipe = make_recipe(self.recipe or default, **{name: getattr(self, name) for name in names})
        check_batch(recipe, max(1, self.workers or 1, self.max_workers or 1))
        return recipe

    def trackers(self) -> tuple[MakeTracker, ...]:
        """Returns who is told how the run gets on. Raises RecipeError."""
        return (make_ray_metrics, make_tensorboard, *([make_mlflow(self.mlflow)] if self.mlflow else []))

    def make_job(self, dataset: str, run: str, recipe: Recipe, workers: int, gpus: int) -> "TrainJob":
        """Returns the job. dataset, run: absolute URIs; gpus: that there are."""
        from pipeline.training.job import TrainJob, weights_of

        return TrainJob(
            dataset,
            run,
            recipe,
            self.seed,
            workers,
            use_gpu=resources.workers_use_gpus(self.device, workers, gpus),
            trace_rows=self.trace_rows,
            on_corrupt=self.on_corrupt,
            max_workers=self.max_workers or 0,
            max_skipped_steps=self.max_skipped_steps,
            hold_out=self.hold_out,
            trackers=self.trackers(),
            pretrained=weights_of("pretrained", files.absolute(self.pretrained)) if self.pretrained else None,
            teacher=teacher(self.teacher),
            hang_seconds=60 * self.hang_minutes,
            cache=resources.resolve_cache_folder(self.cache),
        )


def teacher(run: str | None) -> "Weights | None":
    """Returns the weights of a finished run. Raises CheckpointError if there is none."""
    from pipeline.models.checkpoint import MODEL_NAME
    from pipeline.training.job import weights_of

    return weights_of("teacher", files.absolute(run).rstrip("/"), MODEL_NAME) if run else None


def train_and_report(job: "TrainJob") -> None:
    """Runs the job unless it is finished, writes result and report, and prints where they are."""
    from pipeline.evaluation.predictions import read_predictions
    from pipeline.training import launch
    from pipeline.training.outputs import report, result

    console.print(f"run {job.run}")
    data = launch.check_job(job)
    launch.claim_run(job, data)
    finished = result.read_result(job.run)
    if finished is None:
        with Display() as display:
            if job.num_workers:
                with remote_progress(display) as progress:
                    launch.run_training(replace(job, progress=progress))
            else:
                launch.run_training(replace(job, progress=display))
        finished = result.build_result(job, data)
        report.write_report(job.run, job.dataset, data, finished, read_predictions(job.run)[0])
        result.write_result(job.run, finished)
    else:
        console.print("this run is finished already; give another run directory or name to train again")
    _print_result(job.run, data, finished)


def _print_result(run: str, data: Manifest, result: dict[str, Any]) -> None:
    val = result["val"]
    stand_in = " (NOT CIFAR-10: scikit-learn's digits)" if data.name == digits.NAME else ""
    print_table(
        f"\n{result['recipe']['name']} on {data.name}{stand_in}",
        [
            (
                "top-1",
                f"{val['top1']:.4f}  ({val['correct']:,} of {val['rows']:,} {_evaluated(result)}{_views(result)})",
            ),
            *_without_leaked(result),
            ("top-5", f"{val['top5']:.4f}"),
            ("loss", f"{val['loss']:.4f}"),
            ("training", f"{result['train_seconds']:.0f} s, {result['epochs']} epochs, {result['steps']:,} steps"),
            (
                "speed",
                f"{result['images_per_second']:,.0f} images/s, {result['data_wait_fraction']:.1%} waiting for data",
            ),
            ("time went to", stage_times.largest_shares(result["seconds"])),
            ("operations", _operations(result)),
            ("goodput", f"{result['goodput']:.0%} of the time since the first start, {len(result['starts'])} start(s)"),
            *_quarantined(result),
            ("data set", data.digest[:16]),
            ("result", files.join(run, "result.json")),
            ("report", files.join(run, "report.html")),
        ],
    )


def _operations(result: dict[str, Any]) -> str:
    total = result["operations"]["total"]
    return f"{total:.3g} in training, {result['utilisation']:.0%} of what the device can do"


def _quarantined(result: dict[str, Any]) -> list[tuple[str, str]]:
    lines = result["quarantined"]
    if not lines:
        return []
    counts = ", ".join(f"{sum(line['split'] == split for line in lines):,} {split}" for split in ("train", "val"))
    return [("LEFT OUT", f"{counts} images whose bytes are damaged; first {lines[0]['key']} in {lines[0]['place']}")]


def _evaluated(result: dict[str, Any]) -> str:
    return "images held out of train" if result["evaluated"]["held_out"] else "validation images"


def _views(result: dict[str, Any]) -> str:
    views = result["recipe"]["test_views"]
    return "" if views == "none" else f", test views: {views}"


def _without_leaked(result: dict[str, Any]) -> list[tuple[str, str]]:
    clean = result["val_without_leaked"]
    if clean is None:
        return []
    left_out = result["val"]["rows"] - clean["rows"]
    return [("", f"{clean['top1']:.4f}  without the {left_out:,} that have a duplicate or near duplicate in train")]


def describe_dataset(uri: str) -> Manifest:
    """Prints one line about a data set and returns its manifest."""
    data = load_manifest(uri)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in data.splits.items())
    console.print(f"data set {data.name}: {rows}, {len(data.classes)} classes, digest {data.digest[:16]}")
    if data.name == digits.NAME:
        console.print("NOTE: these are scikit-learn's handwritten digits, NOT CIFAR-10", style="bold yellow")
    return data


def train_here(job: "TrainJob", wait_minutes: float = 0) -> None:
    """Trains and reports; Ray runs meanwhile where it is needed: for workers, or to stream.

    wait_minutes: for nodes of a cluster to join. Raises ClusterError.
    """
    if not job.num_workers and job.recipe.residency == "resident":
        quieten_ray()
        train_and_report(job)
        return
    with ray_session(job.num_workers):
        train_on_cluster(job, wait_minutes)


def train_on_cluster(job: "TrainJob", wait_minutes: float) -> None:
    """Trains and reports on the running Ray, when it has room. Raises ClusterError."""
    with Display() as display:
        job = fit_to_cluster(job, wait_minutes, display)
    train_and_report(job)
