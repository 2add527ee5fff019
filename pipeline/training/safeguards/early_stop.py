"""Early stopping: decides when training no longer improves, and goes back to the best weights.

The decision depends on the evaluations in the run's state alone, so a run that is resumed stops at the same step.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.distributed import gather_objects
from pipeline.models import checkpoint
from pipeline.models.run_state import load_state
from pipeline.storage import files
from pipeline.training.outputs.lines import epoch_of
from pipeline.training.worker import Worker


def best_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the evaluation with the highest top-1, of equals the first."""
    return max(evaluations, key=lambda scores: scores["top1"])


def no_better(evaluations: Sequence[dict[str, Any]], step: int, patience_steps: int) -> bool:
    """Whether the evaluation after `step` steps has just been the last in `patience_steps` without a better top-1."""
    if not evaluations or evaluations[-1]["step"] != step:
        return False
    return step - int(best_of(evaluations)["step"]) >= patience_steps


def is_over(worker: Worker) -> bool:
    """Whether training stops here, before its last epoch. The same on all ranks, and for a resumed run."""
    patience = worker.job.recipe.early_stop_epochs * worker.batches.order.steps_per_epoch
    return patience > 0 and no_better(worker.state.evaluations, worker.state.step, patience)


def keep_best(worker: Worker, final: dict[str, Any] | None) -> dict[str, Any] | None:
    """Loads the weights of the best evaluation, and returns what is to be said of it; None if those now are the best.

    final: scores of the weights now, after the last epoch; None if training stopped early. All ranks together, after
    all of them have written their checkpoints.
    """
    if not worker.job.recipe.early_stop_epochs or not worker.state.evaluations:
        return None
    best, steps_per_epoch = best_of(worker.state.evaluations), worker.batches.order.steps_per_epoch
    if final is not None and final["top1"] >= best["top1"]:
        return None
    uri = checkpoint.folder(worker.job.run, best["step"])
    # Each rank's answer is also a barrier: the checkpoint is complete when rank 0 has published it.
    gather_objects(None, worker.batches.world_size)
    epoch = epoch_of(best["step"], steps_per_epoch)
    if not files.exists(files.join(uri, checkpoint.STATE_NAME)):
        worker.warn("early stop", f"the checkpoint of epoch {epoch} couldn't be written; the model is the last one")
        return None
    load_state(checkpoint.load(uri).tensors, worker.learner.net, worker.learner.average)
    return {
        "stopped": final is None,
        "after_epochs": worker.state.step // steps_per_epoch,
        "step": best["step"],
        "epoch": best["step"] / steps_per_epoch,
        "top1": best["top1"],
    }


def line_of(kept: dict[str, Any]) -> str:
    """Returns the line that says which weights became the model. kept: of `keep_best`."""
    top1 = f"top-1 {100 * kept['top1']:.1f} %"
    if kept["stopped"]:
        since = kept["after_epochs"] - kept["epoch"]
        epochs = "1 epoch" if since == 1 else f"{since:g} epochs"
        return (
            f"stopped after epoch {kept['after_epochs']}: no better for {epochs}; the model is that of epoch "
            f"{kept['epoch']:g}, {top1}"
        )
    return f"the model is that of epoch {kept['epoch']:g}, {top1}, the best of all epochs"
