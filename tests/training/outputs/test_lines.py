"""Lines that a run shows: where it begins, and the scores of each evaluation beside the best."""

import pytest

from pipeline.training.outputs.lines import epoch_of, evaluation_line, start_line


def scores(step: int, top1: float, loss: float | None = 0.3149) -> dict[str, float | None]:
    return {"step": step, "top1": top1, "top5": 1.0, "loss": loss}


def test_an_evaluation_is_shown_beside_the_best() -> None:
    evaluations = [scores(100, 0.5), scores(300, 0.983), scores(400, 0.981)]
    assert evaluation_line(evaluations, 100) == "epoch 4  top-1 98.1 %  loss 0.31  best 98.3 % (epoch 3)"


def test_the_first_of_equal_evaluations_is_the_best_and_a_loss_may_not_be_finite() -> None:
    line = evaluation_line([scores(50, 0.5), scores(100, 0.5, None)], 100)
    assert line == "epoch 1  top-1 50.0 %  loss not finite  best 50.0 % (epoch 0.5)"


@pytest.mark.parametrize(("step", "text"), [(0, "0"), (100, "1"), (1000, "10"), (427, "4.27"), (420, "4.2")])
def test_epochs_have_two_digits_at_most(step: int, text: str) -> None:
    assert epoch_of(step, 100) == text


def test_a_run_says_where_it_begins() -> None:
    assert start_line(0, 1200, 83, None) == "training 1,200 steps: 14.4578 epochs of 83 steps"
    line = start_line(350, 1200, 83, "runs/x/checkpoints/000000350")
    assert line == "continuing at step 350 of 1,200 (epoch 4.22) from checkpoint runs/x/checkpoints/000000350"
