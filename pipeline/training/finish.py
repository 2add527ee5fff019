"""The end of a training run: the final evaluation, and the files that a finished run leaves."""

from dataclasses import asdict
from typing import Any

from torch import nn

from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.finite import finite_or_none
from pipeline.core.progress import message
from pipeline.evaluation.predictions import Predictions, write_predictions
from pipeline.loader.samplers import train_eval_split
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import record_score
from pipeline.models.device.precision import forward_dtype
from pipeline.models.flops import operations_per_image, peak_operations, training_operations
from pipeline.models.tensor_file import serialize_tensors
from pipeline.storage import files
from pipeline.training.optim.factory import describe_groups
from pipeline.training.outputs.lines import evaluation_line
from pipeline.training.safeguards import early_stop
from pipeline.training.selection.proxy import proxy_operations
from pipeline.training.validation import scores_of, validate
from pipeline.training.worker import Worker


def finish(worker: Worker) -> None:
    """Evaluates and writes `predictions.parquet`, `model.safetensors` and `model.json`. All ranks together.

    With `early_stop_epochs`, they are those of the best evaluation.
    """
    import ray.train

    state, meter, stopped = worker.state, worker.meter, early_stop.is_over(worker)
    predictions = None if stopped else validate(worker)  # the last evaluation was just before a stop
    meter.mark("evaluate")
    worker.writer.wait()
    meter.mark("checkpoint")
    scores = None if predictions is None else report_scores(worker, predictions)
    kept = early_stop.keep_best(worker, scores)
    if kept or predictions is None:
        predictions = validate(worker)
        meter.mark("evaluate")
    if stopped:
        state.epochs = state.step // worker.batches.order.steps_per_epoch
    meter.settle()
    state.quarantined = worker.batches.quarantined(state.quarantined)
    if kept:
        message(worker.progress, early_stop.line_of(kept))
        worker.log.event("early stop", state.step, **{name: value for name, value in kept.items() if name != "step"})
    net = worker.learner.evaluated_net() if worker.learner.is_sharded or worker.batches.rank == 0 else None
    if worker.batches.rank == 0 and net is not None:
        write_outputs(worker, predictions, net, kept)
    worker.log.event("end", state.step, seconds={name: round(value, 3) for name, value in state.seconds.items()})
    ray.train.report({"step": state.step})  # a barrier: no worker leaves before the outputs are written


def report_scores(worker: Worker, predictions: Predictions) -> dict[str, Any]:
    """Returns the scores after the last step, and reports them to the display, trackers and checkpoints."""
    state = worker.state
    scores = scores_of(predictions, worker.data.classes)
    if worker.batches.rank == 0:
        record_score(worker.job.run, state.step, scores["top1"])
        worker.trackers.evaluation(state.step, scores)
        evaluations = [*state.evaluations, {"step": state.step, **scores}]
        message(worker.progress, evaluation_line(evaluations, worker.batches.order.steps_per_epoch))
    return scores


def write_outputs(worker: Worker, predictions: Predictions, net: nn.Module, kept: dict[str, Any] | None = None) -> None:
    """Writes what a finished run leaves. net: with its last weights. kept: what `early_stop.keep_best` says.

    On rank 0 alone.
    """
    job, data = worker.job, worker.data
    split = data.split(train_eval_split(data, job.hold_out).split)
    write_predictions(job.run, job.dataset, split, predictions)
    weights = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    files.write_bytes(files.join(job.run, checkpoint.MODEL_NAME), serialize_tensors(weights))
    values = {
        "recipe": recipe_to_json(job.recipe),
        "classes": list(data.classes),
        "dataset_digest": data.digest,
        "hold_out": job.hold_out,
        "world_size": worker.batches.world_size,
        "state": finite_or_none(asdict(worker.state)),  # the losses of skipped steps are NaN
        "operations": operations(worker),
        "parameter_groups": describe_groups(worker.learner.net, worker.learner.train_step.optimizers),
    }
    if kept:
        values["early_stop"] = kept
    files.write_json(files.join(job.run, checkpoint.OUTPUT_NAME), values)


def _operations_of_net(worker: Worker, sizes: list[int]) -> dict[str, float]:
    """Returns those of the network that is trained, and of features that its last layer is fitted to.

    sizes: of the images in each epoch.
    """
    net = worker.learner.unsharded or worker.learner.net
    recipe, rows = worker.job.recipe, worker.batches.order.trained_rows
    forward = operations_per_image(net, recipe.image_size_px, backward=False) if recipe.fit_head != "none" else 0.0
    if recipe.fit_head == "only":
        return {"total": forward * rows, "per_image": forward}
    counted = training_operations(net, sizes, rows)
    passes = 2 if recipe.sam_radius else 1
    total = passes * counted["total"] + forward * rows
    return {"total": total, "per_image": passes * counted["per_image"]}


def operations(worker: Worker) -> dict[str, Any]:
    """Returns the operations of the run (`training_operations`), and how many the devices could do in a second."""
    recipe, batches = worker.job.recipe, worker.batches
    # The image size may grow from epoch to epoch; epochs that are shown together have the size of the first of them.
    rounds = [epoch // recipe.repeats * recipe.repeats for epoch in range(worker.state.epochs)]
    sizes = [batches.train_transform.size_at(epoch) for epoch in rounds]
    peak, source = peak_operations(batches.device, forward_dtype(recipe.precision, batches.device))
    counted = _operations_of_net(worker, sizes)
    if recipe.proxy_filter is not None:
        counted["proxy"] = proxy_operations(recipe, recipe.proxy_filter, len(worker.data.classes), batches.order)
        counted["total"] += counted["proxy"]
    return {
        **counted,
        "images_per_epoch": batches.order.trained_rows,
        "peak_per_second": peak,
        "peak_source": source,
        "devices": batches.world_size,
    }
