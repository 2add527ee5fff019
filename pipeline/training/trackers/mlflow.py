"""Parameters and metrics of a run for an MLflow tracking server."""

import contextlib
import importlib.util
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import RecipeError
from pipeline.core.variables import environment_variables
from pipeline.storage import files
from pipeline.training.trackers.base import TrackedRun, Tracker

MLFLOW_NAME = "mlflow.json"
EXPERIMENT = "image-pipeline"
# Training waits for the server. MLflow's own defaults (120 s, 7 retries) would hold it up for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


@dataclass(frozen=True)
class MakeMlflow:
    """Makes a `Mlflow` in the process of rank 0, which may be on another node than the one that started the run."""

    uri: str
    """URI of the tracking server, or file:// and a folder."""
    environment: tuple[tuple[str, str], ...] = ()
    """MLFLOW_... variables of the starting process, credentials among them."""

    def __call__(self, job: TrackedRun, step: int) -> Tracker:
        """Returns the tracker. MLflow must be installed on the node of rank 0.

        MLflow's client reads the variables at every request, so they stay set until the tracker ends.
        """
        with contextlib.ExitStack() as variables:  # puts the variables back if there is no tracker
            variables.enter_context(environment_variables({**PATIENCE, **dict(self.environment)}))
            tracker = Mlflow(self.uri, job)
            tracker.at_end = variables.pop_all()
        return tracker


def make_mlflow(uri: str) -> MakeMlflow:
    """Returns a maker that takes along this process's MLFLOW_... variables, credentials among them.

    Raises RecipeError if MLflow isn't installed.
    """
    check_mlflow(uri)
    return MakeMlflow(uri, tuple((name, value) for name, value in os.environ.items() if name.startswith("MLFLOW_")))


def check_mlflow(uri: str) -> None:
    """Raises RecipeError if MLflow isn't installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise RecipeError(f"mlflow={uri}: needs the package mlflow or mlflow-skinny; install it, or leave the flag out")


class Mlflow:
    """A run of MLflow in the experiment "image-pipeline". RUN/mlflow.json keeps its ID, so a resumed run goes on in it.

    at_end: is closed when the tracker ends. Raises what MLflow raises if the server doesn't answer.
    """

    def __init__(self, uri: str, job: TrackedRun) -> None:
        from mlflow import MlflowClient

        self.at_end = contextlib.ExitStack()

        self._client: Any = MlflowClient(uri)
        place = files.join(job.run, MLFLOW_NAME)
        if files.exists(place):
            self._id = str(files.read_json(place)["run_id"])
            return
        self._id = self._create(job)
        files.write_json(place, {"run_id": self._id, "tracking_uri": uri})
        for name, value in parameters(job).items():
            self._client.log_param(self._id, name, value)

    def _create(self, job: TrackedRun) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        tags = {"run": job.run, "dataset": job.dataset}
        run = self._client.create_run(experiment, run_name=job.name, tags=tags)
        return str(run.info.run_id)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items() if value is not None]
        self._client.log_batch(self._id, metrics=metrics)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Logs loss, learning rate, speed and quarantined rows; a loss of None isn't logged."""
        self._log(line["step"], metrics_of_line(line, quarantined))

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Logs the validation scores."""
        self._log(step, {f"val.{name}": value for name, value in scores.items()})

    def end(self, finished: bool) -> None:
        """Marks the run as finished, if it is."""
        with self.at_end:
            if finished:
                self._client.set_terminated(self._id, "FINISHED")


def metrics_of_line(line: dict[str, Any], quarantined: int) -> dict[str, Any]:
    """Returns the metrics of a line of the history by the names that trackers use; the loss may be None."""
    names = ("loss", "learning_rate", "images_per_second", "data_wait")
    return {**{f"train.{name}": line[name] for name in names}, "train.quarantined_rows": quarantined}


def parameters(job: TrackedRun) -> dict[str, Any]:
    """Returns the seed and the recipe's values by name; those of a nested value as "NAME.INNER"."""
    flat: dict[str, Any] = {}
    for name, value in asdict(job.recipe).items():
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return {**flat, "seed": job.seed}
