"""Tells others how a run gets on: Ray's metrics, TensorBoard, MLflow, and whoever else is named in the job.

A tracker is anything with the three methods of `Tracker`; a job names functions that make them, (job, step) -> tracker.
They are made and called in the training process of rank 0.
"""

import importlib.util
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.storage import files

TENSORBOARD_FOLDER, MLFLOW_NAME, STARTS = "tensorboard", "mlflow.json", "starts"
_UPLOAD_SECONDS = 60
_SET_AGAIN_SECONDS = 2.0
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # training waits meanwhile


class Run(Protocol):
    """What a tracker may ask of a job."""

    @property
    def run(self) -> str:
        """The run's URI."""

    @property
    def dataset(self) -> str:
        """The data set's URI."""

    @property
    def recipe(self) -> Recipe:
        """All choices."""

    @property
    def seed(self) -> int:
        """Of weights, order and augmentation."""


class Tracker(Protocol):
    """What is told of a run. After a restart, steps since the last checkpoint are told again."""

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """A line of the history (`Meter.line`), some twenty an epoch. quarantined: rows left out so far."""

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """top1, top5 and loss on the val split after `step` steps."""

    def end(self, finished: bool) -> None:
        """The run is finished, or breaks off and may go on later."""


MakeTracker = Callable[[Run, int], Tracker | None]


class Trackers:
    """Several as one. One that fails is said once and left out from then on: no run ends for its tracker."""

    def __init__(self, makers: tuple[MakeTracker, ...], job: Run, step: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._trackers: list[Tracker] = []
        for make in makers:
            try:
                made = make(job, step)
            except Exception as error:  # theirs may be anything
                self._leave_out(getattr(make, "__name__", type(make).__name__), error)
                continue
            self._trackers += [made] if made is not None else []

    def _leave_out(self, name: str, error: Exception) -> None:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        self._say(f"{name}: {text}; this tracker is left out, training goes on")

    def _tell(self, method: str, *values: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # theirs may be anything
                self._trackers.remove(tracker)
                self._leave_out(type(tracker).__name__, error)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """See `Tracker`."""
        self._tell("line", line, quarantined)

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Tracker`."""
        self._tell("evaluation", step, scores)

    def end(self, finished: bool) -> None:
        """See `Tracker`."""
        self._tell("end", finished)


# --- Ray's metrics -----------------------------------------------------------------------------------------------


def ray_metrics(job: Run, step: int) -> Tracker | None:
    """Makes a `RayMetrics`, where Ray runs."""
    import ray

    if not ray.is_initialized():
        return None
    return RayMetrics(files.basename(job.run), len(files.list_files(files.join(job.run, STARTS))))


class RayMetrics:
    """For Prometheus, by Ray: counters of images and seconds; gauges of step, loss, speed, top-1, starts, and of rows
    and steps left out.

    Their names begin with ray_image_pipeline_; the tag `run` is the run's name. starts: so far, this one included.
    Ray forgets a gauge that isn't set for some seconds, so a thread sets them again until the run ends.
    """

    def __init__(self, run: str, starts: int) -> None:
        from ray.util.metrics import Counter, Gauge

        self._tags = {"run": run}
        keys = ("run",)
        self._seconds = Counter("image_pipeline_seconds", "of the training loop, by stage", ("run", "stage"))
        self._images = Counter("image_pipeline_images", "trained on", keys)
        meanings = {
            "step": "done so far",
            "loss": "of training, since the last report",
            "images_per_second": "since the last report",
            "top1": "on the val split, of the last evaluation",
            "starts": "of the run so far",
            "quarantined_rows": "left out, corrupt",
            "skipped_steps": "left out, for they weren't finite",
        }
        self._gauges = {name: Gauge(f"image_pipeline_{name}", text, keys) for name, text in meanings.items()}
        self._values: dict[str, float] = {"starts": starts}
        self._ended = threading.Event()
        threading.Thread(target=self._set_again, daemon=True, name="ray-metrics").start()

    def _set_again(self) -> None:
        while not self._ended.wait(_SET_AGAIN_SECONDS):
            self._set({})

    def _set(self, values: dict[str, float]) -> None:
        self._values |= values
        for name, value in list(self._values.items()):
            self._gauges[name].set(value, self._tags)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """See `Tracker`."""
        for name, seconds in line["seconds"].items():
            if seconds > 0:
                self._seconds.inc(seconds, {**self._tags, "stage": name})
        self._images.inc(line["images"], self._tags)
        same = {name: line[name] for name in ("step", "loss", "images_per_second", "skipped_steps")}
        self._set({**same, "quarantined_rows": quarantined})

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Tracker`."""
        self._set({"top1": scores["top1"]})

    def end(self, finished: bool) -> None:
        """The gauges are forgotten."""
        self._ended.set()


# --- TensorBoard -------------------------------------------------------------------------------------------------


def tensorboard(job: Run, step: int) -> Tracker | None:
    """Makes a `TensorBoard`, where the package is installed."""
    return TensorBoard(job, step) if importlib.util.find_spec("tensorboard") else None


class TensorBoard:
    """Event files in RUN/tensorboard. A run that goes on writes another file, which takes back the steps after `step`.

    Where the run isn't in a local folder, the file is written here and copied there every minute and at the end.
    """

    def __init__(self, job: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target, self._scratch = files.join(job.run, TENSORBOARD_FOLDER), None
        folder = self._target
        if not files.is_local(job.run):
            self._scratch = tempfile.TemporaryDirectory(prefix="tensorboard-")
            folder = self._scratch.name
        self._writer: Any = SummaryWriter(folder, purge_step=step + 1 if step else None)
        self._copied = time.monotonic()
        self._writer.add_text("recipe", f"```\n{json.dumps(asdict(job.recipe), indent=1)}\n```", step)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """See `Tracker`."""
        for name in ("loss", "learning_rate"):
            self._writer.add_scalar(f"train/{name}", line[name], line["step"])
        for name in ("images_per_second", "data_wait"):
            self._writer.add_scalar(f"speed/{name}", line[name], line["step"])
        self._writer.add_scalar("train/quarantined_rows", quarantined, line["step"])
        self._copy(_UPLOAD_SECONDS)

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in scores.items():
            self._writer.add_scalar(f"val/{name}", value, step)
        self._writer.flush()

    def end(self, finished: bool) -> None:
        """Closes the file, and copies it a last time, unless the run breaks off: perhaps for the storage's sake."""
        self._writer.close()
        if finished:
            self._copy(0)
        if self._scratch:
            self._scratch.cleanup()

    def _copy(self, every_seconds: float) -> None:
        if self._scratch and time.monotonic() - self._copied >= every_seconds:
            self._writer.flush()
            for file in Path(self._scratch.name).iterdir():
                files.write_bytes(files.join(self._target, file.name), file.read_bytes())
            self._copied = time.monotonic()


# --- MLflow ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeMlflow:
    """Makes an `Mlflow`. uri: of the tracking server; environment: MLFLOW_... variables, for workers elsewhere."""

    uri: str
    environment: tuple[tuple[str, str], ...] = ()

    def __call__(self, job: Run, step: int) -> Tracker:
        """Needs the package on the node of rank 0."""
        os.environ.update({**PATIENCE, **dict(self.environment)})
        return Mlflow(self.uri, job)


def make_mlflow(uri: str) -> MakeMlflow:
    """Returns a maker that takes this process's MLFLOW_... variables along, credentials among them.

    Raises RecipeError where the package isn't installed.
    """
    check_mlflow(uri)
    return MakeMlflow(uri, tuple((name, value) for name, value in os.environ.items() if name.startswith("MLFLOW_")))


def check_mlflow(uri: str) -> None:
    """Raises RecipeError where the package isn't installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise RecipeError(f"mlflow={uri}: needs the package mlflow or mlflow-skinny; install it, or leave the flag out")


class Mlflow:
    """A run of MLflow in the experiment "image-pipeline"; RUN/mlflow.json keeps its id for when the run goes on."""

    def __init__(self, uri: str, job: Run) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(uri)
        place = files.join(job.run, MLFLOW_NAME)
        if files.exists(place):
            self._id = str(files.read_json(place)["run_id"])
            return
        known = self._client.get_experiment_by_name("image-pipeline")
        experiment = known.experiment_id if known else self._client.create_experiment("image-pipeline")
        self._id = self._client.create_run(
            experiment, run_name=files.basename(job.run), tags={"run": job.run, "dataset": job.dataset}
        ).info.run_id
        files.write_json(place, {"run_id": self._id, "tracking_uri": uri})
        for name, value in {**asdict(job.recipe), "seed": job.seed}.items():
            inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
            for key, each in inner.items():
                self._client.log_param(self._id, key, each)

    def _log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """See `Tracker`."""
        names = ("loss", "learning_rate", "images_per_second", "data_wait")
        values = {f"train.{name}": line[name] for name in names}
        self._log(line["step"], {**values, "train.quarantined_rows": quarantined})

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Tracker`."""
        self._log(step, {f"val.{name}": value for name, value in scores.items()})

    def end(self, finished: bool) -> None:
        """Says that the run is finished, if it is."""
        if finished:
            self._client.set_terminated(self._id, "FINISHED")
