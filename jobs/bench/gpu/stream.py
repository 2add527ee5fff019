"""A stream of photographs into a training worker of Ray Train, and what a SIGKILL costs.

The images are decoded while the network trains. Beside it a worker of the same kind trains on batches that lie decoded
in the host's memory: what the stream reaches of that is what reading and decoding cost.
"""

import contextlib
import importlib.util
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.gpu.child import Bench, SkippedError
from jobs.bench.gpu.pictures import photo_dataset
from jobs.bench.gpu.steps import photo_batch, resnet_recipe
from jobs.bench.gpu.whole_loop import HostBatches, WithoutRay
from pipeline.core.errors import StoppedError
from pipeline.loader.batch import Batch
from pipeline.models.run_state import RunState
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.launch import check_job, claim_run, run_training
from pipeline.training.loop import Due, TrainingSchedule, run_steps
from pipeline.training.setup import Place, set_up

_START_SECONDS = 90.0
"""Longest wait for Ray, its workers and their first step."""
Figures = dict[str, Any]
HELD, STREAM = "batches in memory", "stream"


def run(bench: Bench) -> None:
    """Measures batches in memory and the stream, then kills the training worker."""
    if importlib.util.find_spec("ray") is None:
        raise SkippedError("Ray isn't installed")
    from pipeline.cluster.session import ray_session

    job = _job(bench)
    with ray_session(1), tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True) as folder:
        notes = Notes(folder)
        seconds = 2.0 if bench.small else min(15.0, bench.left() / 6)
        found: dict[str, Figures] = {}

        def record_held(figures: Figures) -> None:
            found[HELD] = figures
            bench.record(HELD, figures, _line(figures))

        def record_stream(figures: Figures) -> None:
            share, line = {}, _line(figures)
            if HELD in found:
                of_held = figures["images_per_second"] / found[HELD]["images_per_second"]
                share, line = {"of_held": of_held}, f"{line}, {of_held:.3f} of {HELD}"
            bench.record(STREAM, {**figures, **share}, line)
            with bench.part("a kill"):  # after the figures, which it must not cost
                _kill_worker(bench, notes)

        with bench.part(HELD):
            held = photo_batch(bench, job.recipe.global_batch_size, job.recipe.image_size_px)
            _measure(bench, _in_new_folder(bench, job), Noted(notes, held), seconds, record_held)
        with bench.part(STREAM):
            _measure(bench, _in_new_folder(bench, job), Noted(notes), seconds, record_stream)


def _job(bench: Bench) -> TrainJob:
    batch_size = 4 if bench.small else 256
    dataset = photo_dataset(bench.settings, 64 if bench.small else 4096)
    # A hundred epochs have no end here. A checkpoint is what a killed worker goes on from: as often as a run has them.
    recipe = replace(resnet_recipe(bench, batch_size), epochs=100_000, checkpoint_every_steps=25, residency="stream")
    seconds = 0.0 if bench.small else None
    on_gpu = bench.settings.device == "cuda"
    return TrainJob(dataset, "", recipe, num_workers=1, use_gpu=on_gpu, checkpoint_seconds=seconds)


def _in_new_folder(bench: Bench, job: TrainJob) -> TrainJob:
    return replace(job, run=os.path.join(bench.settings.folder, f"run-{time.time_ns()}"))


# --- in the worker -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notes:
    """Files in which the worker notes what it does, and finds what it is asked for. The worker is another process."""

    folder: str

    @property
    def steps(self) -> Path:
        """One line a step: time, id of the process, step."""
        return Path(self.folder, "steps.txt")

    def place(self, name: str) -> str:
        """Returns the path of a file of notes."""
        return os.path.join(self.folder, name)

    def ask(self, what: str) -> None:
        """Asks the worker to "report" once, or to "stop"."""
        Path(self.folder, what).touch()

    def asked(self, what: str) -> bool:
        """Returns whether that is asked for."""
        return Path(self.folder, what).exists()

    def clear(self) -> None:
        """Forgets everything."""
        for path in Path(self.folder).iterdir():
            path.unlink()

    def last(self, process: int = 0) -> tuple[float, int, int] | None:
        """Returns time, process and step of the newest step; process: not that of this process."""
        lines = self.steps.read_text().splitlines() if self.steps.exists() else []
        found = [(float(when), int(pid), int(step)) for when, pid, step in map(str.split, lines)]
        return next((each for each in reversed(found) if each[1] != process), None)


class Noting:
    """The run's own schedule, which notes each step, reports when it is asked to, and ends the run when asked to."""

    def __init__(self, inner: WithoutRay, notes: Notes, state: RunState) -> None:
        self._inner, self._notes, self._state = inner, notes, state
        self._lines = len(state.history)
        self.stage, self.last_step = inner.stage, inner.last_step

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps in all."""
        with self._notes.steps.open("a") as file:
            file.write(f"{time.time()} {os.getpid()} {step}\n")
        if self._notes.asked("stop"):
            raise StoppedError("measured")
        if len(self._state.history) > self._lines:  # the report that was due after the last step
            self._lines = len(self._state.history)
            files.write_json(self._notes.place("line.json"), self._state.history[-1])
        if reports := self._notes.asked("report"):
            Path(self._notes.place("report")).unlink()
        return replace(self._inner.due(step), line=reports)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all."""
        return self._inner.progress(step)


@dataclass(frozen=True)
class Noted:
    """How a worker trains. notes: its own. held: the batch in memory on which all steps train; None: a stream."""

    notes: Notes
    held: Batch | None = None


def noted_loop(config: dict[str, Any]) -> None:
    """Trains as one worker of Ray Train until it is asked to stop."""
    notes, held, job = config["noted"].notes, config["noted"].held, config["job"]
    with contextlib.ExitStack() as exits:
        place = Place.in_ray()
        batches = held and HostBatches(job, job.read_manifest(), place.device, held)
        worker = set_up(job, exits, place, batches)
        schedule = WithoutRay(TrainingSchedule.of(worker), checkpoints=True)
        run_steps(worker, Noting(schedule, notes, worker.state))


# --- in this process ---------------------------------------------------------------------------------------------


def _measure(bench: Bench, job: TrainJob, noted: Noted, seconds: float, record: Callable[[Figures], None]) -> None:
    """Trains, and calls `record` while it goes on: images a second, share of waiting, seconds by stage in `seconds`."""
    notes = noted.notes
    notes.clear()
    claim_run(job, check_job(job))
    ended: list[BaseException | None] = []
    thread = threading.Thread(target=_train, args=(job, noted, ended), daemon=True)
    thread.start()
    try:
        first = 2 if bench.small else 20
        _wait(lambda: (notes.last() or (0, 0, 0))[2] >= first, ended, _START_SECONDS, "first steps")
        _report(notes, ended)
        time.sleep(seconds)
        line = _report(notes, ended)
        record({name: line[name] for name in ("images_per_second", "data_wait", "seconds", "images")})
    finally:
        notes.ask("stop")
        thread.join(timeout=60)


def _train(job: TrainJob, noted: Noted, ended: list[BaseException | None]) -> None:
    try:
        run_training(job, noted_loop, noted=noted)
    except StoppedError:
        ended.append(None)
    except BaseException as error:  # raised where the result is waited for
        ended.append(error)
    else:
        ended.append(None)


def _report(notes: Notes, ended: list[BaseException | None]) -> dict[str, Any]:
    """Returns the line of a report that is made now: of the steps since the last one."""
    notes.ask("report")
    line = Path(notes.place("line.json"))
    _wait(line.exists, ended, 60, "a report")
    values: dict[str, Any] = json.loads(line.read_text())
    line.unlink()
    return values


def _wait(ready: Callable[[], bool], ended: list[BaseException | None], seconds: float, what: str) -> None:
    """Waits until something is so. Raises the error of the training if it has ended."""
    end = time.monotonic() + seconds
    while not ready():
        if ended:
            raise RuntimeError(f"the training ended before {what}") from ended[0]
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {seconds:.0f} s")
        time.sleep(0.02)


def _kill_worker(bench: Bench, notes: Notes) -> None:
    """Kills the training worker, and records the time to the next step."""
    if not bench.has(10 if bench.small else 30, "a killed training worker"):
        return
    newest = notes.last()
    assert newest is not None
    os.kill(newest[1], signal.SIGKILL)
    killed = time.time()
    _wait(lambda: (notes.last(newest[1]) or (0,))[0] > killed, [], _START_SECONDS, "step after the kill")
    first = next(line for line in notes.steps.read_text().splitlines() if int(line.split()[1]) != newest[1])
    after = float(first.split()[0]) - killed
    lost = newest[2] - int(first.split()[2]) + 1
    figures = {"seconds_to_next_step": after, "steps_repeated": lost}
    bench.record("killed training worker", figures, f"{after:.1f} s to the next step, {lost} steps repeated")


def _line(figures: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds"].items())
    return f"{figures['images_per_second']:,.0f} images/s, {100 * figures['data_wait']:.1f} % waiting ({stages})"
