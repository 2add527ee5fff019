"""Trials: each one is a training run below OUT/trials/, with its scores and its status in files of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.sample_order import num_steps
from pipeline.loader.samplers import training_split
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.search.space import Values, with_values
from pipeline.training.trackers.base import TrackedRun, Tracker
from pipeline.training.trackers.tensorboard import make_tensorboard

TRIALS, SCORES_NAME, STATUS_NAME = "trials", "scores.json", "status.json"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class TrialResult:
    """What is known of a trial."""

    number: int
    values: Values
    status: str  # waiting, running, finished, stopped (by the scheduler) or failed
    scores: list[dict[str, float]]  # of each evaluation: step, epoch, top1, top5, loss
    error: str  # message of a failed trial, else ""

    @property
    def top1(self) -> float:
        """Top-1 accuracy of the last evaluation in [0, 1]; -1 before the first."""
        return self.scores[-1]["top1"] if self.scores else -1.0


def trial_run(out: str, number: int) -> str:
    """Returns the URI of a trial's run."""
    return files.join(out, TRIALS, f"{number:04d}")


def trial_job(template: TrainJob, out: str, number: int, values: Values) -> TrainJob:
    """Returns the training job of a trial: the template with the trial's run, values and trackers.

    Reads the manifest of the data set, for the number of steps in an epoch.
    """
    recipe = with_values(template.recipe, values)
    data = manifest.load(template.dataset)
    rows = training_split(template.dataset, data, recipe, template.hold_out).epoch_rows
    trackers = (ScoresTracker(num_steps(rows, recipe.global_batch_size)), make_tensorboard)
    return replace(template, run=trial_run(out, number), recipe=recipe, trackers=trackers, progress=silent)


def run_trial(job: TrainJob, report: Callable[[dict[str, float]], None]) -> None:
    """Trains a trial, or the rest of one that was interrupted, and reports each evaluation once.

    report: called with the scores of each evaluation, including those before an interruption. Call this function in a
    trial of Ray Tune. Ray Train can't run inside one, so a Ray task of its own does the training.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    num_reported = 0
    if read_status(job.run)[0] in ("waiting", "running"):
        cpus = 0.0 if job.num_workers else job.cpus_per_worker
        # Outside of the trial's own placement group, which reserves nothing.
        anywhere = PlacementGroupSchedulingStrategy(placement_group=None)
        task = ray.remote(num_cpus=cpus, scheduling_strategy=anywhere)(_train)
        pending = [task.options(name=f"trial {files.basename(job.run)}").remote(job)]
        while pending:
            ended, pending = ray.wait(pending, timeout=_POLL_SECONDS)
            scores = read_scores(job.run)
            for line in scores[num_reported:]:
                report(line)
            num_reported = len(scores)
            ray.get(ended)  # raises the task's error
        write_status(job.run, "finished")
    for line in read_scores(job.run)[num_reported:]:
        report(line)


def _train(job: TrainJob) -> None:
    from pipeline.training import launch

    launch.claim_run(job, launch.check_job(job))
    write_status(job.run, "running")
    launch.run_training(job)


# --- a trial's files ---------------------------------------------------------------------------------------------


def write_status(run: str, status: str, error: str = "") -> None:
    """Writes the status of a trial: running, finished, stopped or failed, with the error of a failed one."""
    files.write_json(files.join(run, STATUS_NAME), {"status": status, "error": error})


def read_status(run: str) -> tuple[str, str]:
    """Returns the status of a trial and its error; "waiting" before it has begun."""
    uri = files.join(run, STATUS_NAME)
    if not files.exists(uri):
        return "waiting", ""
    values = files.read_json(uri)
    return values["status"], values["error"]


def read_scores(run: str) -> list[dict[str, float]]:
    """Returns the scores of a trial's evaluations so far: step, epoch, top1, top5, loss."""
    uri = files.join(run, SCORES_NAME)
    if not files.exists(uri):
        return []
    scores: list[dict[str, float]] = files.read_json(uri)
    return scores


def read_trials(out: str, drawn: list[Values]) -> list[TrialResult]:
    """Returns what is known of each trial, by number. drawn: the values of each."""
    results = []
    for number, values in enumerate(drawn):
        run = trial_run(out, number)
        status, error = read_status(run)
        results.append(TrialResult(number, values, status, read_scores(run), error))
    return results


def best_trial(trials: list[TrialResult]) -> TrialResult | None:
    """Returns the finished trial with the highest top-1, of equals the one with the lowest loss; None if none has
    finished.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    return max(finished, key=_rank, default=None)


def _rank(trial: TrialResult) -> tuple[float, float]:
    loss = trial.scores[-1]["loss"]  # None if it isn't finite
    return trial.top1, -math.inf if loss is None else -loss


class ScoresFile:
    """A tracker that writes a trial's evaluations to `scores.json`.

    step: that training resumes from; scores after it are dropped, because those evaluations happen again.
    """

    def __init__(self, run: str, step: int, steps_per_epoch: int) -> None:
        self._uri, self._steps_per_epoch = files.join(run, SCORES_NAME), steps_per_epoch
        self._scores = [line for line in read_scores(run) if line["step"] <= step]

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Ignores the training history: trials are compared by their evaluations."""

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Appends an evaluation and rewrites the file. One of the same step, before a restart, is replaced."""
        self._scores = [line for line in self._scores if line["step"] < step]
        self._scores.append({"step": step, "epoch": step / self._steps_per_epoch, **scores})
        files.write_json(self._uri, self._scores)

    def end(self, finished: bool) -> None:
        """Does nothing: every evaluation is written already."""


@dataclass(frozen=True)
class ScoresTracker:
    """Makes a `ScoresFile` for a job; a class instead of a closure, because jobs are pickled."""

    steps_per_epoch: int

    def __call__(self, job: TrackedRun, step: int) -> Tracker:
        """Returns the tracker of a run that resumes from `step`."""
        return ScoresFile(job.run, step, self.steps_per_epoch)
