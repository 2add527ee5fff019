"""Failures of real workers: after kills the weights are those of a run without kills; bad losses end the run."""

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.presets import make_recipe
from pipeline.core.errors import DivergedError
from pipeline.models import checkpoint
from pipeline.training import launch, loop
from pipeline.training import train_step as step_module
from pipeline.training.job import TrainJob
from pipeline.training.outputs import result
from tests.support.trained.runs import trained_on

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def job_of(dataset: str, run: Path, epochs: int, **changes: Any) -> TrainJob:
    recipe = replace(make_recipe("digits", epochs=epochs, global_batch_size=126), checkpoint_every_steps=5)
    return TrainJob(dataset, str(run), recipe, seed=4, cpus_per_worker=0.5, **changes)


def run_it(job: TrainJob, train_loop: Callable[[dict[str, Any]], None] = loop.train_loop) -> dict[str, Any]:
    data = launch.check_job(job)
    launch.claim_run(job, data)
    launch.run_training(job, train_loop)
    return result.build_result(job, data)


def workers() -> list[int]:
    """Returns the IDs of the processes that train now, in no order."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"RayTrainWorker" in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.long
def test_ten_random_kills_end_with_the_weights_of_the_quiet_run(digits_dataset: str, tmp_path: Path) -> None:
    """SIGKILL to one of two workers, ten times, each after a new checkpoint and a random while."""
    quiet = run_it(job_of(digits_dataset, tmp_path / "quiet", 30, num_workers=2, trace_rows=True))
    job, draw = job_of(digits_dataset, tmp_path / "killed", 30, num_workers=2, trace_rows=True), random.Random(7)
    kills: list[tuple[int, float]] = []
    ended = threading.Event()

    def kill_now_and_then() -> None:
        before = None
        while len(kills) < 10 and not ended.is_set():
            now = checkpoint.latest(job.run)
            if now == before or not workers():
                time.sleep(0.05)
                continue
            time.sleep(draw.uniform(0, 0.4))
            alive = workers()
            if alive:
                os.kill(draw.choice(alive), signal.SIGKILL)
                kills.append((int(Path(now or "0").name), time.monotonic()))
            before = checkpoint.latest(job.run)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        values = run_it(job)
    finally:
        ended.set()
        killer.join()
    assert len(kills) == 10
    assert len(values["starts"]) >= 8  # two kills may meet the same start
    for name in ("model.safetensors", "predictions.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes(), name
    steps = trained_on(str(tmp_path / "killed"))
    assert steps == trained_on(str(tmp_path / "quiet"))
    assert len(steps) == 30 * 12
    assert values["val"] == quiet["val"]
    seconds = sorted(start["time"] for start in values["starts"])
    gaps = [round(later - earlier, 1) for earlier, later in pairwise(seconds)]
    print(f"starts at steps {[start['step'] for start in values['starts']]}; seconds between starts {gaps}")


class InfiniteLoss:
    """Makes the loss of one rank in one step infinite, in whatever process it runs."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Runs the training loop with the defect."""
        module: Any = step_module
        original = module.sample_losses

        def losses(*values: Any) -> torch.Tensor:
            out = original(*values)
            (self.run / f"calls-{os.getpid()}").open("a").write("x")
            here = torch.distributed.get_rank() == 1 and (self.run / f"calls-{os.getpid()}").stat().st_size == self.step
            return out * (float("inf") if here else 1.0)

        module.sample_losses = losses
        try:
            loop.train_loop(*arguments, **named)
        finally:
            module.sample_losses = original


@pytest.mark.long
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_once_and_names_everything(
    digits_dataset: str, tmp_path: Path
) -> None:
    job = job_of(digits_dataset, tmp_path / "run", 2, num_workers=2)
    (tmp_path / "run").mkdir()
    with pytest.raises(DivergedError) as caught:
        run_it(job, InfiniteLoss(tmp_path / "run", 9))
    message = str(caught.value)
    assert message.startswith("step 8: the loss is ")
    for words in ("nothing was updated", "last good checkpoint: ", "000000005", "--max-skipped-steps"):
        assert words in message
    assert len(list((tmp_path / "run").glob("starts/*"))) == 1  # not tried again
    places = list((tmp_path / "run").glob("diverged-step-8-rank-*.json"))
    assert places


def test_a_run_that_breaks_off_in_this_process_leaves_no_watch_behind(
    digits_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watchdog that went on would end the process later. Trackers learn that the run isn't finished."""
    told: list[bool] = []

    class Ends:
        def __init__(self, job: Any, step: int) -> None: ...

        def end(self, finished: bool) -> None:
            told.append(finished)

    monkeypatch.setattr(
        "pipeline.training.train_step.sample_losses", lambda *_: torch.tensor([math.inf], requires_grad=True)
    )
    job = replace(job_of(digits_dataset, tmp_path / "run", 1), trackers=(Ends,))
    with pytest.raises(DivergedError):
        run_it(job)
    assert told == [False]
    watches = [each for each in threading.enumerate() if each.name == "watchdog"]
    for each in watches:
        each.join(5)
    assert not [each for each in watches if each.is_alive()]
