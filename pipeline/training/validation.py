"""Evaluation of a worker's network on the validation split, during training and at its end."""

from typing import Any

from pipeline.core.finite import finite_or_none
from pipeline.evaluation.distributed import predict_distributed
from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.metrics import basic_metrics
from pipeline.evaluation.predictions import Predictions
from pipeline.training.safeguards.checkpoints import leave_evaluation
from pipeline.training.worker import Worker

SCORES = ("loss", "top1", "top5")


def validate(worker: Worker) -> Predictions:
    """Returns the predictions of all ranks in row order, the same on each. All ranks together.

    The rows are those of the validation split, or of the part of train that is held out, without corrupt ones.
    """
    batches, recipe = worker.batches, worker.job.recipe
    parts = batches.parts
    rows = range(parts.first_row, parts.first_row + parts.rows)

    def progress(stage: str, done: int, total: int, remark: str = "") -> None:
        worker.watchdog.beat(f"evaluation batch {done}")
        leave_evaluation(worker)
        worker.progress(stage, done, total, remark)

    def left_out() -> list[int]:
        return [row for split, row in batches.quarantined([]) if split == parts.split and row in rows]

    learner, num_classes = worker.learner, len(worker.data.classes)
    net, normalise = learner.evaluated_net(), learner.train_step.normalise
    predictor = Predictor(net, normalise, num_classes, recipe.loss, recipe.test_views)
    return predict_distributed(predictor, batches.validation(progress), rows, batches.world_size, left_out)


def scores_of(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns loss, top1 and top5; None for a loss that isn't finite, which JSON can't hold."""
    metrics = basic_metrics(predictions, classes)
    return {name: finite_or_none(metrics[name]) for name in SCORES}
