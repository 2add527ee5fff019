"""Steps that are skipped because loss or gradient isn't finite: what they leave out, and that all JSON stays JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pipeline.config.presets import make_recipe
from pipeline.core.finite import finite_or_none
from pipeline.dataset import manifest
from pipeline.evaluation.predictions import read_predictions
from pipeline.models import checkpoint
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training import train_step as step_module
from pipeline.training.job import TrainJob
from pipeline.training.launch import run_training
from pipeline.training.outputs.report import render
from pipeline.training.outputs.result import build_result, write_result
from pipeline.training.worker import Learner

SKIPPED = [0, 1, 4, *range(6, 12)]  # of 12 steps, with a checkpoint after 6


class Noting:
    """A tracker that keeps the losses it is told."""

    losses: ClassVar[list[float | None]] = []

    def __init__(self, job: Any, step: int) -> None:
        Noting.losses = []

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        Noting.losses.append(line["loss"])

    def evaluation(self, step: int, scores: dict[str, Any]) -> None: ...

    def end(self, finished: bool) -> None: ...


@pytest.fixture(scope="module")
def job(digits_dataset: str, ray_variables: None, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A finished run of 12 steps, some of which were skipped, with an average of weights."""
    recipe = replace(
        make_recipe("seed-cnn", epochs=1, global_batch_size=126, learning_rate=1e-3),
        checkpoint_every_steps=6, ema_decay=0.5,
    )  # fmt: skip
    run = str(tmp_path_factory.mktemp("skipped") / "run")
    job = TrainJob(digits_dataset, run, recipe, max_skipped_steps=len(SKIPPED), trackers=(Noting,))
    steps: list[int] = []

    def losses(*arguments: Any) -> torch.Tensor:
        steps.append(len(steps))
        finite = torch.nn.functional.cross_entropy(arguments[1], arguments[2], reduction="none")
        return finite * math.nan if steps[-1] in SKIPPED else finite

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "sample_losses", losses)
        run_training(job)
    return job


def strict(path: Path) -> Any:
    """Returns the value of a JSON file. Raises ValueError for NaN and infinities, which JSON doesn't have."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path.name}: {constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def history(job: TrainJob) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = strict(Path(job.run, checkpoint.OUTPUT_NAME))["state"]["history"]
    return lines


@pytest.mark.ray
def test_a_run_whose_first_steps_are_skipped_reports_the_learning_rate_of_its_schedule(job: TrainJob) -> None:
    """It ended with an UnboundLocalError at the first report."""
    lines = history(job)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["learning_rate"] == pytest.approx(1e-3) for line in lines)
    assert lines[-1]["skipped_steps"] == len(SKIPPED)


@pytest.mark.ray
def test_skipped_steps_have_no_part_in_the_losses_and_every_file_is_json(job: TrainJob) -> None:
    losses = [line["loss"] for line in history(job)]
    assert [step for step, loss in enumerate(losses) if loss is None] == SKIPPED
    assert Noting.losses == losses
    assert sum(line["images"] for line in history(job)) == 1438  # they count as trained on
    recorded = strict(Path(job.run, checkpoint.OUTPUT_NAME))["state"]["losses"]
    assert [step for step, loss in enumerate(recorded) if loss is None] == SKIPPED
    for path in Path(job.run).rglob("*.json"):
        strict(path)


@pytest.mark.ray
def test_skipped_steps_have_no_part_in_the_average_of_weights(job: TrainJob) -> None:
    """All steps after the checkpoint at step 6 were skipped: the average of then is the run's."""
    before, after = (checkpoint.load(checkpoint.folder(job.run, step)).tensors for step in (6, 12))
    names = [name for name in before if name.startswith("average/")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.ray
def test_result_and_report_cope_with_losses_that_are_not_there(job: TrainJob) -> None:
    data = manifest.load(job.dataset)
    result = build_result(job, data)
    result["val"]["loss"] = finite_or_none(math.inf)
    write_result(job.run, result)
    strict(Path(job.run, "result.json"))
    assert "The validation loss is not finite" in render(job.dataset, data, result, read_predictions(job.run)[0])


def learner(average: WeightAverage | LookAhead, net: nn.Module) -> Learner:
    return Learner(net, net, average, None)  # no step is made


def test_look_ahead_ends_on_its_slow_weights_also_if_the_last_step_is_skipped() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    ahead = learner(LookAhead(net, 5), net)
    with torch.no_grad():
        net.weight.fill_(3.0)
    ahead.update_average(5, 6, found_inf=torch.ones(()))
    assert net.weight.item() == 3.0  # not set back by a skipped step
    ahead.update_average(6, 6, found_inf=torch.ones(()))
    assert net.weight.item() == 1.0
