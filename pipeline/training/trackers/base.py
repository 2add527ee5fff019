"""The interface of a tracker, and a group of trackers of which one may fail without ending the run.

A tracker is any object with the three methods of `Tracker`. A job names functions that make one,
`(job, step) -> tracker`; they are called in the training process of rank 0.
"""

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.config.recipe import Recipe


class TrackedRun(Protocol):
    """The attributes of a job that a tracker may read."""

    @property
    def run(self) -> str:
        """URI of the run."""

    @property
    def name(self) -> str:
        """Name of the run."""

    @property
    def dataset(self) -> str:
        """URI of the data set."""

    @property
    def recipe(self) -> Recipe:
        """Recipe of the run."""

    @property
    def seed(self) -> int:
        """Seed of weights, order and augmentation."""


class Tracker(Protocol):
    """Receives the progress of a run. After a restart, steps since the last checkpoint are reported again."""

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Takes a line of the history (`Meter.line`), about twenty an epoch.

        `line["loss"]` is None if every step since the line before was skipped. quarantined: corrupt rows left out so
        far.
        """

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Takes top1, top5 and loss on the validation split after `step` steps; a loss that isn't finite is None."""

    def end(self, finished: bool) -> None:
        """Releases what the tracker holds. finished: False if the run breaks off and may be resumed later."""


MakeTracker = Callable[[TrackedRun, int], Tracker | None]


class Trackers:
    """A group of trackers. One that raises is reported once and left out from then on; the run goes on.

    makers: called once each with the job and `step`, the steps done so far; one that returns None makes no tracker.
    warn: called with a line for each tracker that is left out.
    """

    def __init__(
        self, makers: tuple[MakeTracker, ...], job: TrackedRun, step: int, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._trackers: list[Tracker] = []
        for make in makers:
            try:
                tracker = make(job, step)
            except Exception as error:  # foreign code may raise anything
                self._report_failure(getattr(make, "__name__", type(make).__name__), error)
                continue
            self._trackers += [tracker] if tracker is not None else []

    def _report_failure(self, name: str, error: Exception) -> None:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        self._warn(f"{name}: {text}; this tracker is left out, training goes on")

    def _call(self, method: str, *values: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # foreign code may raise anything
                self._trackers.remove(tracker)
                self._report_failure(type(tracker).__name__, error)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Passes a line of the history to each tracker."""
        self._call("line", line, quarantined)

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Passes validation scores to each tracker."""
        self._call("evaluation", step, scores)

    def end(self, finished: bool) -> None:
        """Ends each tracker."""
        self._call("end", finished)
