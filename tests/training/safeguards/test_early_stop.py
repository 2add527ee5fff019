"""Early stopping: when it stops, that the model is the best one, and that an interrupted run stops at the same step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.models import checkpoint
from pipeline.models.run_state import MODEL, select_prefix
from pipeline.models.tensor_file import read_tensors
from pipeline.training import TrainOptions, make_job, train
from pipeline.training.loop import TrainingSchedule
from pipeline.training.safeguards.early_stop import line_of, no_better


def evaluations(*top1: float) -> list[dict[str, Any]]:
    """Returns the evaluations after each epoch of ten steps."""
    return [{"step": 10 * (number + 1), "top1": each} for number, each in enumerate(top1)]


@pytest.mark.parametrize(
    ("top1", "patience", "over"),
    [
        ((), 1, False),
        ((0.5,), 1, False),
        ((0.5, 0.6), 1, False),
        ((0.5, 0.5), 1, True),  # as good is no better
        ((0.5, 0.4), 2, False),
        ((0.5, 0.4, 0.45), 2, True),
        ((0.5, 0.4, 0.6), 2, False),
        ((0.5, 0.4, 0.6, 0.5), 2, False),
        ((0.5, 0.7, 0.6, 0.7), 2, True),  # of equals the first counts
    ],
)
def test_training_is_over_after_epochs_without_a_better_top1(
    top1: tuple[float, ...], patience: int, over: bool
) -> None:
    assert no_better(evaluations(*top1), 10 * len(top1), 10 * patience) is over
    assert not no_better(evaluations(*top1), 10 * len(top1) + 3, 10 * patience)  # between evaluations


def test_every_epoch_is_evaluated_with_early_stopping() -> None:
    schedule = TrainingSchedule(100, 10, 7, validate_every_epoch=True)
    assert [step for step in range(1, 101) if schedule.due(step).validation] == list(range(10, 100, 10))


def test_the_field_changes_no_identity_where_it_is_not_used(tmp_path: Path) -> None:
    recipe = make_recipe("digits")
    job = make_job("/data", str(tmp_path), recipe, 0, TrainOptions())
    assert "early_stop_epochs" not in job.identity("d")["recipe"]
    stopping = replace(job, recipe=replace(recipe, early_stop_epochs=3))
    assert stopping.identity("d")["recipe"]["early_stop_epochs"] == 3
    with pytest.raises(RecipeError, match="early_stop_epochs=-1 must be 0 or more"):
        replace(recipe, early_stop_epochs=-1)


def test_the_line_says_which_epoch_became_the_model() -> None:
    kept = {"stopped": True, "after_epochs": 12, "step": 70, "epoch": 7.0, "top1": 0.983}
    text = "stopped after epoch 12: no better for 5 epochs; the model is that of epoch 7, top-1 98.3 %"
    assert line_of(kept) == text
    assert line_of({**kept, "stopped": False}) == "the model is that of epoch 7, top-1 98.3 %, the best of all epochs"


class Interrupts:
    """A tracker that interrupts the run after its third evaluation."""

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Does nothing."""

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Interrupts, in the middle of an epoch's end: the checkpoint of this epoch is not yet written."""
        if step == 3 * 12:
            raise KeyboardInterrupt

    def end(self, finished: bool) -> None:
        """Does nothing."""


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_stops_early_with_its_best_weights_and_so_does_one_that_was_interrupted(
    digits_dataset: str, ray_variables: None, tmp_path: Path
) -> None:
    recipe = make_recipe(
        "digits", epochs=30, early_stop_epochs=2, schedule="constant", learning_rate=0.4, image_size_px=16,
        evaluate_resize_px=16,
    )  # fmt: skip
    options = TrainOptions(trackers=())
    lines: list[str] = []

    def note(stage: str, done: int, total: int, remark: str = "") -> None:
        lines.append(remark)

    result = train(digits_dataset, tmp_path / "whole", recipe, workers=0, options=options, progress=note)
    top1 = [scores["top1"] for scores in result["evaluations"]]
    best = top1.index(max(top1))
    kept = result["early_stop"]
    assert (result["epochs"], result["steps"]) == (len(top1), 12 * len(top1))
    assert len(top1) < 30
    assert len(top1) - (best + 1) == 2
    assert kept == {
        "stopped": True, "after_epochs": len(top1), "step": 12 * (best + 1), "epoch": best + 1, "top1": max(top1),
    }  # fmt: skip
    assert result["val"]["top1"] == max(top1)
    assert line_of(kept) in lines
    saved = checkpoint.load(checkpoint.folder(str(tmp_path / "whole"), kept["step"])).tensors
    model = read_tensors(str(tmp_path / "whole" / checkpoint.MODEL_NAME))
    assert all(tensor.equal(model[name]) for name, tensor in select_prefix(saved, MODEL).items())

    with pytest.raises(KeyboardInterrupt):
        train(
            digits_dataset, tmp_path / "again", recipe, workers=0,
            options=TrainOptions(trackers=(lambda job, step: Interrupts(),)),
        )  # fmt: skip
    again = train(digits_dataset, tmp_path / "again", recipe, workers=0, options=options)
    assert again["early_stop"] == kept
    assert again["evaluations"] == result["evaluations"]
    for name in (checkpoint.MODEL_NAME, "predictions.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "again" / "model.json").read_text())["state"]["epochs"] == len(top1)
