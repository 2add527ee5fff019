"""Ray Tune: starts trials, stops the worse ones early, and continues those of an interrupted search.

The scheduler is ASHA (Li et al., arXiv 1810.05934). Tune's own files are temporary and nothing pickled is read back: an
interrupted search continues from the trials' `scores.json` and `status.json`.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from pipeline.cluster.ray_errors import user_message
from pipeline.cluster.ray_tasks import run_in_thread
from pipeline.cluster.session import quieten_ray
from pipeline.core.progress import Progress, silent
from pipeline.training.job import TrainJob
from pipeline.training.search.settings import SearchSettings
from pipeline.training.search.space import Values
from pipeline.training.search.trial import read_status, read_trials, run_trial, trial_job, trial_run, write_status


def run_trials(template: TrainJob, out: str, drawn: list[Values], settings: SearchSettings, progress: Progress) -> None:
    """Runs all trials until each has finished, was stopped, or has failed.

    template: the job of every trial, without its run and values. drawn: the values of each trial. progress: stage
    "tune", counted in trials.
    """
    scheduler = ASHAScheduler(
        time_attr="epoch",
        grace_period=settings.grace_epochs,
        max_t=max(template.recipe.epochs, settings.grace_epochs),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )
    with _quiet_tune(), tempfile.TemporaryDirectory(prefix="tune-") as scratch:
        tuner = tune.Tuner(
            # A trial itself only waits: the task that it starts asks for the CPUs and GPUs.
            tune.with_resources(_trial_function(template, out, drawn), {"CPU": 0, "memory": 1}),
            param_space={"number": tune.grid_search(list(range(len(drawn))))},
            tune_config=tune.TuneConfig(
                metric="top1", mode="max", max_concurrent_trials=max_concurrent_trials(template), scheduler=scheduler
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=scratch, verbose=0, callbacks=[TrialCallback(out, drawn, progress)]
            ),
        )
        run_in_thread(tuner.fit)


def max_concurrent_trials(template: TrainJob) -> int:
    """Returns how many trials fit on the running cluster at a time, at least 1."""
    workers, resources = template.num_workers, ray.cluster_resources()
    if template.use_gpu:
        return max(1, int(resources.get("GPU", 0)) // workers)
    # A trial that streams needs one CPU more, for decoding; with workers, the trainer needs one for all of them.
    cpus = int(max(1, workers) * template.cpus_per_worker) + (template.recipe.residency == "stream")
    return max(1, (int(resources.get("CPU", 1)) - (workers > 0)) // cpus)


def _trial_function(template: TrainJob, out: str, drawn: list[Values]) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        quieten_ray()
        number = config["number"]
        run_trial(trial_job(template, out, number, drawn[number]), tune.report)

    return trial


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Switches off Tune's tables and log files, and puts the process's settings back afterwards."""
    variables = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    before = {name: os.environ.get(name) for name in variables}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ |= variables
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class TrialCallback(tune.Callback):  # type: ignore[misc]
    """Writes the status of trials that end, and reports the progress of the search."""

    def __init__(self, out: str, drawn: list[Values], progress: Progress) -> None:
        self._out, self._num_trials, self._progress = out, len(drawn), progress
        known = read_trials(out, drawn)  # of an interrupted search
        self._top1 = {trial.number: trial.top1 for trial in known if trial.scores}
        self._ended = {trial.number for trial in known if trial.status not in ("waiting", "running")}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; a progress display belongs to this process.
        return {**self.__dict__, "_progress": silent}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:
        """Notes the trial's last top-1."""
        self._top1[trial.config["number"]] = result["top1"]
        self._report(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Writes "stopped" for a trial that the scheduler ended; one that finished has written its own status."""
        number = trial.config["number"]
        run = trial_run(self._out, number)
        if read_status(run)[0] == "running":
            write_status(run, "stopped")
        self._ended.add(number)
        self._report(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Writes "failed" and the error."""
        number = trial.config["number"]
        error = trial.get_error() or RuntimeError("no message")
        text = user_message(error) or str(error).strip().splitlines()[-1]
        write_status(trial_run(self._out, number), "failed", text)
        self._ended.add(number)
        self._report(trials)

    def _report(self, trials: list[Any]) -> None:
        num_running = sum(trial.status == "RUNNING" for trial in trials)
        leading = max(self._top1, key=lambda number: self._top1[number], default=None)
        best = "" if leading is None else f"; highest so far {self._top1[leading]:.4f} (trial {leading})"
        self._progress("tune", len(self._ended), self._num_trials, f"{num_running} running{best}")
