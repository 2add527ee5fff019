"""Searching a recipe's fields: what is tried, one trial, and what a search has found so far.

Trials are runs like any other, below `OUT/trials/`, on train alone: a part of it is held out to compare them by, and
val isn't looked at. Ray Tune decides which go on (ASHA, Li et al., arXiv 1810.05934); everything that a search knows
lies in plain files, so a search that was killed goes on from them, and nothing pickled is read.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

import numpy as np

from pipeline.config.choices import check_choice
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.sample_order import num_steps
from pipeline.loader.samplers import train_eval_split
from pipeline.models.identity import check_identity
from pipeline.storage import files
from pipeline.storage.claim import claim_folder
from pipeline.training.job import TrainJob
from pipeline.training.trackers.base import TrackedRun, Tracker
from pipeline.training.trackers.tensorboard import make_tensorboard

SEARCH_NAME, TRIALS, SCORES_NAME, STATUS_NAME, BEST_NAME = (
    "search.json", "trials", "scores.json", "status.json", "best-recipe.json",
)  # fmt: skip
_POLL_SECONDS = 0.5
Values = dict[str, Any]


# --- what is tried -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, evenly, or evenly in their logarithm; whole ones where `whole`."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False

    def draw(self, generator: np.random.Generator) -> float | int:
        """Returns one of them."""
        low, high = (np.log(self.low), np.log(self.high)) if self.logarithmic else (self.low, self.high)
        drawn = float(generator.uniform(low, high))
        number = float(np.exp(drawn)) if self.logarithmic else drawn
        return round(number) if self.whole else float(f"{number:.4g}")


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """Returns one of them."""
        return self.values[int(generator.integers(len(self.values)))]


Space = dict[str, Range | Choice]


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """Returns the recipe with fields changed; "augment.NAME" are those of its augmentation. Raises RecipeError."""
    augment = {name.removeprefix("augment."): value for name, value in values.items() if name.startswith("augment.")}
    own = {name: value for name, value in values.items() if not name.startswith("augment.")}
    return replace(recipe, augment=replace(recipe.augment, **augment), **own)


def default_space(recipe: Recipe) -> Space:
    """Rate and weight decay within a factor of four, label smoothing from 0 to 0.2."""
    decay = recipe.weight_decay or 5e-4
    return {
        "learning_rate": Range(recipe.learning_rate / 4, recipe.learning_rate * 4, logarithmic=True),
        "weight_decay": Range(decay / 4, decay * 4, logarithmic=True),
        "label_smoothing": Range(0.0, 0.2),
    }


def parse_space(lines: tuple[str, ...], recipe: Recipe) -> Space:
    """Returns the space of lines "FIELD=LOW..HIGH", "FIELD=log:LOW..HIGH" and "FIELD=A,B,C". Raises RecipeError."""
    return dict(_parse_line(line, recipe) for line in lines)


def _parse_line(line: str, recipe: Recipe) -> tuple[str, Range | Choice]:
    name, equals, text = line.partition("=")
    values = {f"augment.{each.name}": getattr(recipe.augment, each.name) for each in fields(recipe.augment)}
    values |= {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    for kept in ("name", "augment", "size_ramp", "fit_seconds", "evaluate_resize_px"):
        del values[kept]
    check_choice("space", name, tuple(values))
    usage = f"space={line!r}: give {name}=LOW..HIGH, {name}=log:LOW..HIGH or {name}=A,B,C"
    if not equals or not text:
        raise RecipeError(usage)
    if ".." not in text:
        return name, Choice(tuple(_value(part.strip(), usage) for part in text.split(",")))
    low, high = (_value(part, usage) for part in text.removeprefix("log:").split("..", 1))
    logarithmic = text.startswith("log:")
    if not all(isinstance(end, int | float) for end in (low, high)) or not low < high or (logarithmic and low <= 0):
        raise RecipeError(f"{usage}; LOW must be below HIGH, and above 0 for log")
    return name, Range(low, high, logarithmic, whole=type(_plain(recipe, name)) is int)


def _plain(recipe: Recipe, name: str) -> Any:
    return getattr(recipe.augment, name.removeprefix("augment.")) if "." in name else getattr(recipe, name)


def _value(text: str, usage: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text  # a name
    if isinstance(value, list | dict):
        raise RecipeError(usage)
    return value


def draw(space: Space, trials: int, recipe: Recipe, seed: int) -> list[Values]:
    """Returns the values of each trial; the first one is the recipe as it is. Raises RecipeError if one can't work."""
    generator = np.random.default_rng(seed)
    drawn = [{name: _plain(recipe, name) for name in space}]
    drawn += [{name: domain.draw(generator) for name, domain in space.items()} for _ in range(trials - 1)]
    for values in drawn:
        _check_types(recipe, values)
        with_values(recipe, values)
    return drawn


def _check_types(recipe: Recipe, values: Values) -> None:
    for name, value in values.items():
        hints = get_type_hints(type(recipe.augment if "." in name else recipe))
        expected = hints[name.removeprefix("augment.")]
        for plain in (bool, int, float, str):
            number = plain is float and type(value) is int
            if expected is plain and type(value) is not plain and not number:
                raise RecipeError(f"space: {name}={value!r} must be of type {plain.__name__}")


# --- one trial ---------------------------------------------------------------------------------------------------


def trial_run(out: str, number: int) -> str:
    """The run of a trial."""
    return files.join(out, TRIALS, f"{number:04d}")


def read_scores(run: str) -> list[dict[str, float]]:
    """Returns the evaluations of a trial so far: step, epoch, top1, top5, loss."""
    place = files.join(run, SCORES_NAME)
    if not files.exists(place):
        return []
    scores: list[dict[str, float]] = files.read_json(place)
    return scores


class Scores:
    """A tracker that writes a trial's evaluations down."""

    def __init__(self, run: str, step: int, steps_per_epoch: int) -> None:
        self._place, self._per_epoch = files.join(run, SCORES_NAME), steps_per_epoch
        self._scores = [line for line in read_scores(run) if line["step"] <= step]

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Nothing: trials are compared by their evaluations."""

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Tracker`."""
        self._scores.append({"step": step, "epoch": step / self._per_epoch, **scores})
        files.write_json(self._place, self._scores)

    def end(self, finished: bool) -> None:
        """Nothing."""


@dataclass(frozen=True)
class MakeScores:
    """Makes a `Scores`."""

    steps_per_epoch: int

    def __call__(self, job: TrackedRun, step: int) -> Tracker:
        """See `tracking.MakeTracker`."""
        return Scores(job.run, step, self.steps_per_epoch)


def trial_job(template: TrainJob, out: str, number: int, values: Values) -> TrainJob:
    """Returns a trial's job: the search's own, with the trial's run and values. Reads the data set's manifest."""
    recipe = with_values(template.recipe, values)
    rows = train_eval_split(manifest.load(template.dataset), template.hold_out).train_rows
    trackers = (MakeScores(num_steps(rows, recipe.global_batch_size)), make_tensorboard)
    return replace(template, run=trial_run(out, number), recipe=recipe, trackers=trackers, progress=silent)


def run_trial(job: TrainJob, report: Callable[[dict[str, float]], None]) -> None:
    """Trains a trial, or what is left of it, and reports every evaluation once, also those of before.

    Called in a trial of Ray Tune, where Ray Train's functions are forbidden: a task of its own trains.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    told = 0
    if read_status(job.run)[0] in ("waiting", "running"):
        cpus = 0.0 if job.num_workers else job.cpus_per_worker
        anywhere = PlacementGroupSchedulingStrategy(placement_group=None)  # else in what the trial itself has: nothing
        task = ray.remote(num_cpus=cpus, scheduling_strategy=anywhere)(_train)
        pending = [task.options(name=f"trial {files.basename(job.run)}").remote(job)]
        while pending:
            ended, pending = ray.wait(pending, timeout=_POLL_SECONDS)
            lines = read_scores(job.run)
            for line in lines[told:]:
                report(line)
            told = len(lines)
            ray.get(ended)
        write_status(job.run, "finished")
    for line in read_scores(job.run)[told:]:
        report(line)


def _train(job: TrainJob) -> None:
    from pipeline.training import launch

    launch.claim_run(job, launch.check_job(job))
    write_status(job.run, "running")
    launch.run_training(job)


def write_status(run: str, status: str, error: str = "") -> None:
    """Notes how a trial is: running, finished, stopped (by the scheduler) or failed."""
    files.write_json(files.join(run, STATUS_NAME), {"status": status, "error": error})


def read_status(run: str) -> tuple[str, str]:
    """Returns how a trial is and what made it fail; waiting where it hasn't begun."""
    place = files.join(run, STATUS_NAME)
    if not files.exists(place):
        return "waiting", ""
    noted = files.read_json(place)
    return noted["status"], noted["error"]


# --- a search ----------------------------------------------------------------------------------------------------


def claim_search(out: str, identity: dict[str, Any]) -> None:
    """Writes down what a search is at its first start. Raises CheckpointError if it is another's."""

    place, mine = files.join(out, SEARCH_NAME), json.loads(json.dumps(identity))
    check_identity(out, claim_folder(place, mine), mine, "--out")


@dataclass(frozen=True)
class TrialResult:
    """number, values and status of a trial, its evaluations, and what made it fail."""

    number: int
    values: Values
    status: str
    scores: list[dict[str, float]]
    error: str

    @property
    def top1(self) -> float:
        """Of its last evaluation; below 0 where there is none."""
        return self.scores[-1]["top1"] if self.scores else -1.0


def read_trials(out: str, drawn: list[Values]) -> list[TrialResult]:
    """Returns what is known of each trial, in their order."""
    runs = [trial_run(out, number) for number in range(len(drawn))]
    return [
        TrialResult(number, values, status, read_scores(run), error)
        for number, (run, values) in enumerate(zip(runs, drawn, strict=True))
        for status, error in [read_status(run)]
    ]


def best_trial(trials: list[TrialResult]) -> TrialResult | None:
    """Returns the finished trial with the highest top-1; of equal ones that with the lowest loss."""
    finished = [trial for trial in trials if trial.status == "finished"]
    return max(finished, key=lambda trial: (trial.top1, -trial.scores[-1]["loss"]), default=None)


def write_best(out: str, recipe: Recipe, trials: list[TrialResult]) -> str | None:
    """Writes the recipe of the best trial, to be given to `--recipe`, and returns its URI."""
    best = best_trial(trials)
    if best is None:
        return None
    place = files.join(out, BEST_NAME)
    tuned = replace(with_values(recipe, best.values), name=f"{recipe.name}-tuned")
    files.write_bytes(place, json.dumps(asdict(tuned), indent=1).encode())
    return place
