"""An interrupted run saves its state after the running step, and goes on to the same weights, to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import StoppedError
from pipeline.core.interrupts import StopRequest
from pipeline.models import checkpoint
from pipeline.models.run_state import RunState
from pipeline.training import launch
from pipeline.training.job import TrainJob
from pipeline.training.loop import TrainingSchedule

pytestmark = pytest.mark.ray
# Three epochs of 4 steps, with an evaluation of one batch after each: after what a run asks whether to stop, in order.
ASKS = [1, 2, 3, 4, "evaluation", 5, 6, 7, 8, "evaluation", 9, 10, 11, 12, "final evaluation"]


class StopAt(StopRequest):
    """Requests a stop when it is asked for the `call`-th time; 0 for never."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call, self.calls = call, 0

    def __call__(self) -> bool:
        self.calls += 1
        return bool(self.call) and self.calls >= self.call


def train(dataset: str, run: Path, call: int = 0, seconds: float | None = None) -> tuple[StopAt, list[str]]:
    """Trains; returns what asked whether to stop, and the messages of the run."""
    stop, lines = StopAt(call), []
    recipe = make_recipe("digits", epochs=3, global_batch_size=16)

    def progress(stage: str, done: int, total: int, remark: str = "") -> None:
        if not stage:
            lines.append(remark)

    job = TrainJob(dataset, str(run), recipe, stop=stop, progress=progress, checkpoint_seconds=seconds)
    launch.run_training(job)
    return stop, lines


def outcome(run: Path) -> tuple[bytes, dict[str, Any], list[int]]:
    """Returns the weights, the evaluations and losses, and the steps of the history of a finished run."""
    state = json.loads((run / checkpoint.OUTPUT_NAME).read_text())["state"]
    same = {name: state[name] for name in ("evaluations", "losses", "step", "skipped")}
    return (run / checkpoint.MODEL_NAME).read_bytes(), same, [line["step"] for line in state["history"]]


@pytest.fixture(scope="module")
def undisturbed(tree_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    stop, lines = train(tree_dataset, run)
    assert stop.calls == len(ASKS)
    assert lines[0] == "training 12 steps: 3 epochs of 4 steps"
    assert [line.split("  ")[0] for line in lines[1:]] == ["epoch 1", "epoch 2", "epoch 3"]
    return run


SOME = [1, ASKS.index("evaluation"), ASKS.index("evaluation") + 1, len(ASKS)]


@pytest.mark.parametrize(
    "call", [pytest.param(n, marks=[] if n in SOME else [pytest.mark.slow]) for n in range(1, len(ASKS) + 1)]
)
def test_a_run_that_is_stopped_at_any_moment_loses_no_step_and_ends_the_same(
    tmp_path: Path, tree_dataset: str, undisturbed: Path, call: int
) -> None:
    run = tmp_path / "run"
    step = max(ask for ask in ASKS[:call] if isinstance(ask, int))
    with pytest.raises(StoppedError, match=rf"stopped at step {step} of 12 \(epoch .*\); checkpoint {run}"):
        train(tree_dataset, run, call)
    newest = checkpoint.latest(str(run))
    assert newest is not None
    assert checkpoint.read_state(newest)["step"] == step
    assert not (run / checkpoint.OUTPUT_NAME).exists()
    _, lines = train(tree_dataset, run)
    assert lines[0].startswith(f"continuing at step {step} of 12 (epoch ")
    weights, same, steps = outcome(run)
    assert (weights, same) == outcome(undisturbed)[:2]
    assert steps == sorted(set(steps))
    assert json.loads((run / "best.json").read_text()) == json.loads((undisturbed / "best.json").read_text())


def steps_saved(run: Path) -> list[int]:
    return checkpoint.steps(str(run))


def test_a_run_of_seconds_has_the_checkpoint_of_its_end_alone(
    tmp_path: Path, tree_dataset: str, undisturbed: Path
) -> None:
    train(tree_dataset, tmp_path, seconds=1000)
    assert steps_saved(tmp_path) == [12]
    assert outcome(tmp_path) == outcome(undisturbed)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 12


@pytest.mark.parametrize("call", [2, ASKS.index("evaluation") + 1])
def test_a_run_of_seconds_that_is_stopped_has_a_checkpoint_of_where_it_was(
    tmp_path: Path, tree_dataset: str, undisturbed: Path, call: int
) -> None:
    step = max(ask for ask in ASKS[:call] if isinstance(ask, int))
    with pytest.raises(StoppedError, match=rf"stopped at step {step} of 12 .*; checkpoint {tmp_path}"):
        train(tree_dataset, tmp_path, call, seconds=1000)
    assert steps_saved(tmp_path) == [step]
    _, lines = train(tree_dataset, tmp_path, seconds=1000)
    assert lines[0].startswith(f"continuing at step {step} of 12 (epoch ")
    assert outcome(tmp_path)[:2] == outcome(undisturbed)[:2]
    assert steps_saved(tmp_path) == [step, 12]


@pytest.mark.parametrize(
    ("step", "evaluated", "owes"),
    [(0, [], False), (40, [], True), (40, [40], False), (41, [], False), (120, [], False)],
)
def test_a_run_owes_the_validation_that_it_was_stopped_before(step: int, evaluated: list[int], owes: bool) -> None:
    schedule = TrainingSchedule(last_step=240, steps_per_epoch=40, checkpoint_every_steps=7)
    state = RunState(epochs=6, step=step, evaluations=[{"step": done} for done in evaluated])
    assert schedule.owes_validation(state) == owes
