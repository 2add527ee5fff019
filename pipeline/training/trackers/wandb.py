"""Parameters and metrics of a run for Weights & Biases."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import RecipeError, check_installed
from pipeline.core.variables import environment_variables
from pipeline.storage import files
from pipeline.training.trackers.base import TrackedRun, Tracker
from pipeline.training.trackers.mlflow import metrics_of_line, parameters

WANDB_NAME = "wandb.json"
_NO_SERVER = ("offline", "disabled", "dryrun")
# Training waits for the server at its start and at its end. W&B's own limits are 90 s and none.
_INIT_SECONDS, _FINISH_SECONDS = 30.0, 60.0


@dataclass(frozen=True)
class MakeWandb:
    """Makes a `Wandb` in the process of rank 0, which may be on another node than the one that started the run."""

    project: str
    """Project, or ENTITY/PROJECT."""
    environment: tuple[tuple[str, str], ...] = ()
    """WANDB_... variables of the starting process, the API key among them."""

    def __call__(self, job: TrackedRun, step: int) -> Tracker:
        """Returns the tracker. The package wandb must be installed on the node of rank 0."""
        # wandb reads the variables when a run begins; the run keeps what it has read.
        with environment_variables({"WANDB_SILENT": "true", **dict(self.environment)}):
            return Wandb(self.project, job)


def make_wandb(project: str) -> MakeWandb:
    """Returns a maker that takes along this process's WANDB_... variables, the API key among them.

    Raises MissingPackageError if the package isn't installed, RecipeError if there is no API key and WANDB_MODE isn't
    offline.
    """
    if not project.strip("/") or project.count("/") > 1:
        raise RecipeError(f"wandb={project}: give PROJECT, or ENTITY/PROJECT")
    check_installed(f"wandb={project}", "wandb", extra="wandb")
    if os.environ.get("WANDB_MODE", "online") not in _NO_SERVER and not _has_key():
        raise RecipeError(
            f"wandb={project}: no API key; run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to send later"
        )
    return MakeWandb(project, tuple((name, value) for name, value in os.environ.items() if name.startswith("WANDB_")))


def _has_key() -> bool:
    """Whether this machine is logged in. Asks neither the server nor the user."""
    with environment_variables({"WANDB_SILENT": "true"}):
        import wandb

        return bool(wandb.login(prompt=False, verify=False))


class Wandb:
    """A run of W&B. RUN/wandb.json keeps its ID, so a resumed run goes on in it.

    Its own files lie in RUN/wandb where the run is local; `wandb sync RUN/wandb/offline-run-...` sends those of an
    offline run. Raises what wandb raises if the server doesn't answer within 30 s.
    """

    def __init__(self, project: str, job: TrackedRun) -> None:
        import wandb

        place = files.join(job.run, WANDB_NAME)
        known = files.read_json(place)["run_id"] if files.exists(place) else None
        entity, _, name = project.rpartition("/")
        self._scratch = None if files.is_local(job.run) else tempfile.TemporaryDirectory(prefix="wandb-")
        settings = wandb.Settings(
            console="off", silent=True, init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS
        )
        self._run: Any = wandb.init(
            entity=entity or None,
            project=name,
            name=job.name,
            id=known,
            resume="allow",
            dir=self._scratch.name if self._scratch else job.run,
            config={**parameters(job), "run": job.run, "dataset": job.dataset},
            reinit="create_new",  # beside a run that the user's own program may have
            settings=settings,
        )
        files.write_json(place, {"run_id": self._run.id, "project": self._run.project})
        # Steps since the last checkpoint are reported again after a restart; W&B's own step may not go back.
        self._run.define_metric("*", step_metric="step")

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Logs loss, learning rate, speed and quarantined rows; a loss of None isn't logged."""
        self._log(line["step"], metrics_of_line(line, quarantined))

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Logs the validation scores."""
        self._log(step, {f"val.{name}": value for name, value in scores.items()})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log({"step": step, **{name: value for name, value in values.items() if value is not None}})

    def end(self, finished: bool) -> None:
        """Ends W&B's run, as failed unless it is finished; waits up to a minute for what isn't sent yet."""
        self._run.finish(exit_code=0 if finished else 1)
        if self._scratch:
            self._scratch.cleanup()
