"""`report.html` while the run trains: written again after each evaluation, and reloaded by the browser.

A thread of rank 0 draws and writes it, in some milliseconds each time, so that no step waits for it.
"""

import threading
import time
from dataclasses import asdict
from typing import Any

from pipeline.dataset.manifest import Manifest
from pipeline.models.run_state import RunState
from pipeline.reporting.page import render_page
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.outputs.inline_charts import line_chart
from pipeline.training.outputs.lines import epoch_of
from pipeline.training.outputs.machine_use import MachineUse
from pipeline.training.outputs.parts import command_of, flat, machine_charts
from pipeline.training.outputs.samples import sample_pictures
from pipeline.training.resume import read_starts
from pipeline.training.trackers.base import MakeTracker, TrackedRun, Tracker

REPORT_NAME = "report.html"
_SECONDS = 60.0  # between pages without an evaluation, and between any two in object storage

_PATIENCE_SECONDS = 5.0


def live_report(job: TrainJob, data: Manifest, state: RunState, steps_per_epoch: int) -> MakeTracker:
    """Returns what makes the `LiveReport` of a run."""

    def make_live_report(_: TrackedRun, step: int) -> Tracker:
        return LiveReport(job, data, state, steps_per_epoch)

    return make_live_report


class LiveReport:
    """A tracker that writes the page of a run that trains, and samples the machine. state: of the run, read only."""

    def __init__(self, job: TrainJob, data: Manifest, state: RunState, steps_per_epoch: int) -> None:
        self._job, self._data, self._state, self._steps_per_epoch = job, data, state, steps_per_epoch
        self._uri = files.join(job.run, REPORT_NAME)
        self._use = MachineUse(job.run)
        self._begun, self._first_step = time.time(), state.step
        self._samples: dict[str, Any] | None = None
        self._evaluations: list[dict[str, Any]] = []
        self._due, self._ended, self._written = threading.Event(), False, 0.0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="live-report")
        self._due.set()  # the first page, as soon as the pictures are made
        self._thread.start()

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Takes a line of the history: the page is due if the last one is a minute old. Raises what writing raised."""
        if self._error is not None:
            raise self._error
        if time.monotonic() - self._written > _SECONDS:
            self._due.set()

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Takes an evaluation: the page is due."""
        self._evaluations = [*self._evaluations, {"step": step, **scores}]
        self._due.set()

    def end(self, finished: bool) -> None:
        """Ends the threads; a run that breaks off leaves a page that says so and isn't reloaded any more.

        Not in object storage: the storage itself may be the reason, and the run mustn't wait for it.
        """
        self._ended = True
        self._due.set()
        is_writable = finished or files.is_local(self._uri)
        self._thread.join(None if is_writable else _PATIENCE_SECONDS)
        self._use.stop(save=is_writable)
        if is_writable and not finished and self._error is None:
            self._write(is_running=False)

    def _work(self) -> None:
        try:
            self._samples = sample_pictures(self._job, self._data)
            while self._due.wait() and not self._ended:
                self._due.clear()
                self._write(is_running=True)
                if not files.is_local(self._uri):
                    self._wait(_SECONDS)
        except Exception as error:  # raised in the training thread, which reports it and leaves this tracker out
            self._error = error

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ended and time.monotonic() < deadline:
            time.sleep(0.2)

    def _write(self, is_running: bool) -> None:
        self._written = time.monotonic()
        self._use.save()
        files.write_bytes(self._uri, self._render(is_running).encode())

    def _render(self, is_running: bool) -> str:
        job, state = self._job, self._state
        num_steps = state.epochs * self._steps_per_epoch
        step = state.step
        at = f"step {step:,} of {num_steps:,}, epoch {epoch_of(step, self._steps_per_epoch)} of {state.epochs}"
        done = {each["step"]: each for each in [*state.evaluations, *self._evaluations]}
        per_epoch = self._steps_per_epoch
        evaluations = [{**each, "epoch": epoch_of(number, per_epoch)} for number, each in sorted(done.items())]
        return render_page(
            "live_report.html",
            title=f"{job.recipe.model} on {self._data.name}",
            status=f"training: {at}" if is_running else f"stopped at {at}",
            is_running=is_running,
            stopped="" if is_running else "This run was stopped or broke off; the same command goes on with it.",
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
            tiles=self._tiles(evaluations, num_steps),
            curves=self._curves(evaluations),
            evaluations=evaluations[::-1],
            machine_charts=machine_charts(self._use.samples),
            samples=self._samples,
            recipe=flat(asdict(job.recipe)),
            **command_of(job, read_starts(job.run)),
        )

    def _tiles(self, evaluations: list[dict[str, Any]], num_steps: int) -> list[tuple[str, str]]:
        state, history = self._state, self._state.history
        tiles = [(f"{100 * state.step / num_steps:.0f} %", "of the steps")]
        if evaluations:
            best = max(evaluations, key=lambda scores: scores["top1"])
            tiles.append((f"{100 * evaluations[-1]['top1']:.2f} %", "top-1 now"))
            tiles.append((f"{100 * best['top1']:.2f} %", f"best top-1, epoch {best['epoch']}"))
        if history:
            tiles.append((f"{history[-1]['images_per_second']:,.0f}", "images/s"))
        if done := state.step - self._first_step:
            left = (time.time() - self._begun) / done * (num_steps - state.step)
            tiles.append((f"{left / 60:,.0f} min" if left > 90 else f"{left:.0f} s", "left, about"))
        return tiles

    def _curves(self, evaluations: list[dict[str, Any]]) -> list[tuple[Any, str]]:
        history, per_epoch = list(self._state.history), self._steps_per_epoch

        def column(name: str) -> list[tuple[float, float]]:
            return [(line["epoch"], line[name]) for line in history if line[name] is not None]

        loss = [(each["step"] / per_epoch, each["loss"]) for each in evaluations if each["loss"] is not None]
        top1 = [(each["step"] / per_epoch, 100 * each["top1"]) for each in evaluations]
        return [
            (line_chart({"train": column("loss"), "validation": loss}, "epochs"), "Loss (train: augmented images)"),
            (line_chart({"top-1": top1}, "epochs", " %"), "Top-1 on validation images"),
            (line_chart({"images/s": column("images_per_second")}, "epochs"), "Speed"),
            (line_chart({"rate": column("learning_rate")}, "epochs"), "Learning rate"),
        ]
