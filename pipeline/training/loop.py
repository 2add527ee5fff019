"""Training on Ray Train: one function a worker runs, and what starts it.

Read `_train` top to bottom: it is the whole of training. What it needs from outside is in a `TrainJob`, what
it leaves behind lies below the job's run URI: checkpoints, `model.safetensors` and `model.json`, `predictions.parquet`.
"""

import contextlib
import copy
import json
import os
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.cluster.ray_train import fit_trainer, scaling_config
from pipeline.config.recipe import Recipe, check_batch
from pipeline.core.errors import DivergedError
from pipeline.core.progress import Progress, silent
from pipeline.core.structured_log import RunLog, silent_log
from pipeline.dataset import manifest, parquet
from pipeline.dataset.manifest import Manifest
from pipeline.evaluation.distributed import predict_distributed
from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.metrics import basic_metrics
from pipeline.evaluation.predictions import Predictions, write_predictions
from pipeline.loader.augment import dropout_seed
from pipeline.loader.batch import Batch
from pipeline.loader.samplers import train_eval_split
from pipeline.loader.stage_times import largest_shares
from pipeline.models import checkpoint
from pipeline.models.batch_transforms import Normalise
from pipeline.models.checkpoint_writer import CheckpointWriter, record_score
from pipeline.models.distillation import Teacher
from pipeline.models.factory import recipe_model
from pipeline.models.flops import peak_operations, training_operations
from pipeline.models.identity import check_identity
from pipeline.models.pretrained import load_pretrained
from pipeline.models.run_state import Average, RunState, collect, is_rank_local, restore
from pipeline.models.small_networks import Whitened
from pipeline.models.tensor_file import serialize_tensors
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.storage import files
from pipeline.storage.claim import claim_folder
from pipeline.training.fault_tolerance import Judge, Notice, note_start
from pipeline.training.job import TrainJob
from pipeline.training.optim.factory import describe_groups, make_optimizers
from pipeline.training.safeguards import FiniteGuard, Watchdog
from pipeline.training.step_meter import Meter
from pipeline.training.trackers import Trackers
from pipeline.training.train_step import Step, num_threads, uses_bfloat16
from pipeline.training.worker_data import Batches

CONFIG_NAME, REPLAY_NAME = "config.json", "replayed.json"
SCORES = ("loss", "top1", "top5")
FIT_EPOCHS = (*range(1, 17), 20, 24, 32)
_FIT_STEPS, _FIT_MARGIN = 12, 1.03
_HISTORY_POINTS_PER_EPOCH = 20


# --- the loop ----------------------------------------------------------------------------------------------------


def train_loop(config: dict[str, Any]) -> None:
    """What each worker runs. config: {"job": TrainJob}."""
    with contextlib.ExitStack() as ending:
        _train(config["job"], ending)


def _train(job: TrainJob, ending: contextlib.ExitStack) -> None:
    import ray.train.torch

    begin = time.perf_counter()
    recipe, context = job.recipe, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu" and (job.num_workers or recipe.residency == "stream"):
        torch.set_num_threads(num_threads(recipe, context.get_local_world_size()))
    progress = job.progress if rank == 0 else silent
    watchdog = Watchdog(job.hang_seconds, lambda line: progress("watch", 0, 0, line))
    ending.callback(watchdog.end)

    data = manifest.load(job.dataset)
    identity = job.identity(data.digest)
    torch.manual_seed(job.seed)
    net = recipe_model(recipe, len(data.classes))
    normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
    batches = Batches(job, data, world_size, rank, device, progress)
    order = batches.order
    resumed = checkpoint.latest(job.run)
    if resumed is None and job.pretrained:
        load_pretrained(net, job.pretrained.uri)
    elif resumed is None and isinstance(net, Whitened):
        net.fit_whitening(normalise(batches.whitening_images().to(device)).cpu())
    net = net.to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(net, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    optimizers = make_optimizers(net, recipe)
    average = make_average(recipe, net)
    called = torch.compile(model) if recipe.compile else model
    teacher = Teacher(job.teacher.uri, data.classes, recipe).to(device) if job.teacher else None
    train_step = Step(recipe, called, optimizers, normalise, order, job.seed, world_size, device, teacher)

    state = RunState(epochs=recipe.epochs)
    if resumed is not None:
        saved = checkpoint.load(resumed)
        del saved.state["world_size"], saved.state["classes"]
        check_identity(resumed, saved.state.pop("identity"), identity)
        state = restore(saved, net, optimizers, average)
    elif recipe.fit_seconds:
        progress("fit", 0, 0, "timing a few steps")
        state.epochs = _fit_epochs(job, net, train_step, batches)
        progress("fit", 1, 1, f"{state.epochs} epochs fit in {recipe.fit_seconds:g} s")
    num_steps, steps_per_epoch = state.epochs * order.steps_per_epoch, order.steps_per_epoch
    report_every = max(1, steps_per_epoch // _HISTORY_POINTS_PER_EPOCH)
    trace = _Trace(job, data, rank, world_size, state.step) if job.trace_rows else None
    token = note_start(job.run, rank, world_size, state.step)
    log = RunLog(files.basename(job.run), rank, world_size) if job.num_workers else silent_log()
    log.event("start", state.step, recipe=recipe.name, dataset=data.digest, last_step=num_steps)

    def say(stage: str, line: str) -> None:
        """Tells people and logs what may want their attention."""
        progress(stage, 0, 0, line)
        log.event(stage, state.step, "warning", text=line)

    writer = CheckpointWriter(job.run, rank, world_size, token, lambda line: say("checkpoint", line))
    notice, guard = Notice(rank), FiniteGuard(job.max_skipped_steps, world_size, device)

    def save(score: float | None = None, alone: bool = False) -> None:
        """Begins to write a checkpoint; steps go on."""
        if trace:
            trace.flush(state.step)
        tensors = collect(net, optimizers, average, state)
        values = {**state.as_json(), "identity": identity, "world_size": world_size, "classes": list(data.classes)}
        writer.save(state.step, tensors, values, score, is_rank_local, alone)

    last_step = min(num_steps, state.step + job.replay_steps) if job.replay_steps else num_steps
    stream = batches.training(state.step, last_step)
    makers = () if rank or job.replay_steps else job.trackers
    trackers = Trackers(makers, job, state.step, lambda line: say("tracking", line))
    ending.push(lambda kind, *_: trackers.end(finished=kind is None))
    meter = Meter(state.seconds, state.losses, device, world_size, time.perf_counter() - begin)
    while state.step < last_step:
        model.train()
        step = state.step
        batch = meter.next_batch(stream)
        watchdog.beat(f"batch {step}")
        if trace:
            trace.write(step, batch)
        batch = batch.to(device)
        meter.until_now("copy")
        torch.manual_seed(dropout_seed(job.seed, step, rank))
        loss, norm = train_step.gradients(batch, step)
        try:
            if guard.may_update(loss, norm, step, state.skipped):
                rate = train_step.update(norm, step, num_steps)
            else:
                train_step.forget()
        except DivergedError as error:
            log.event("diverged", step, "error", text=str(error))
            writer.wait()
            raise _diverged(error, job, data, batch, step, rank) from None
        if average is not None:
            average.update(net, step + 1, num_steps)
        meter.add(loss, order.batch_size(step))
        meter.until_now("compute")
        state.step = step + 1
        watchdog.beat(f"step {step}")

        if job.replay_steps:
            progress("replay", state.step - last_step + job.replay_steps, job.replay_steps)
            continue
        ends_epoch, score = state.step % steps_per_epoch == 0, None
        if state.step % report_every == 0 or ends_epoch:
            state.history.append({**meter.line(state.step, order, rate), "skipped_steps": len(state.skipped)})
            state.quarantined = batches.quarantined(state.quarantined)
            progress("train", state.step, num_steps, _remark(state))
            trackers.line(state.history[-1], len(state.quarantined))
            log.event("train", **state.history[-1], quarantined_rows=len(state.quarantined))
        if ends_epoch and state.step < num_steps and batches.evaluates_after(state.step // steps_per_epoch):
            meter.until_now("other")
            scores = basic_metrics(_evaluate(net, average, batches, normalise, progress, watchdog), data.classes)
            state.evaluations.append({"step": state.step, **{k: scores[k] for k in SCORES}})
            trackers.evaluation(state.step, {k: scores[k] for k in SCORES})
            log.event("evaluation", state.step, **{k: scores[k] for k in SCORES})
            score = scores["top1"]
            meter.until_now("evaluate")
        if state.step % recipe.checkpoint_every_steps == 0 or ends_epoch:
            meter.settle()
            state.quarantined = batches.quarantined(state.quarantined)
            save(score)
            meter.until_now("checkpoint")
        elif (line := notice.seen(writer, lambda: collect(net, optimizers, average, state))) is not None:
            say("notice", line)
            if notice.saves == "all":
                save(alone=True)
            elif notice.saves:
                writer.salvage(state.step, evaluated(net, average).state_dict())
            meter.until_now("checkpoint")
        if ends_epoch:
            ray.train.report({"step": state.step, **state.history[-1]})

    if job.replay_steps:
        meter.settle()
        if rank == 0:
            files.write_json(files.join(job.run, REPLAY_NAME), state.losses)
        ray.train.report({"step": state.step})
        return
    predictions = _evaluate(net, average, batches, normalise, progress, watchdog)
    meter.until_now("evaluate")
    writer.wait()
    meter.until_now("checkpoint")
    meter.settle()
    state.quarantined = batches.quarantined(state.quarantined)
    if rank == 0:
        rounds = [epoch // recipe.repeats * recipe.repeats for epoch in range(state.epochs)]
        sizes = [batches.train_view.size_at(epoch) for epoch in rounds]
        operations = training_operations(net, sizes, order.num_rows)
        peak, source = peak_operations(device, uses_bfloat16(recipe, device))
        more = {
            "operations": {**operations, "peak_per_second": peak, "peak_source": source, "devices": world_size},
            "parameter_groups": describe_groups(net, optimizers),
        }
        _write_outputs(job, data, evaluated(net, average), state, world_size, predictions, more)
        scores = basic_metrics(predictions, data.classes)
        record_score(job.run, state.step, scores["top1"])
        trackers.evaluation(state.step, {k: scores[k] for k in SCORES})
    log.event("end", state.step, seconds={name: round(value, 3) for name, value in state.seconds.items()})
    ray.train.report({"step": state.step})  # a barrier: no worker leaves before the outputs are there


def make_average(recipe: Recipe, net: nn.Module) -> Average | None:
    """Returns the average of weights that a recipe asks for."""
    if recipe.ema_decay:
        return WeightAverage(net, recipe.ema_decay, recipe.ema_every_steps)
    return LookAhead(net, recipe.look_ahead_every_steps) if recipe.look_ahead_every_steps else None


def evaluated(net: nn.Module, average: Average | None) -> nn.Module:
    """Returns the network that is evaluated: a copy with the averaged weights where they are apart."""
    if not isinstance(average, WeightAverage):
        return net
    twin = copy.deepcopy(net)
    twin.load_state_dict({**net.state_dict(), **average.values})
    return twin


def _diverged(error: DivergedError, job: TrainJob, data: Manifest, batch: Batch, step: int, rank: int) -> DivergedError:
    """Says everything about a step that gave no finite numbers, and writes down its keys."""
    keys = parquet.read_rows(job.dataset, data.split("train"), np.sort(batch.rows), ("key",))["key"].to_pylist()
    place = files.join(job.run, f"diverged-step-{step}-rank-{rank}.json")
    files.write_json(place, {"step": step, "rank": rank, "keys": keys})
    last = checkpoint.latest(job.run)
    return DivergedError(
        f"{error} on rank {rank}; nothing was updated. Images {', '.join(keys[:3])} and {max(0, len(keys) - 3)} more "
        f"({place}); last good checkpoint: {last or 'none'}; lower learning_rate, or leave such steps out with "
        "--max-skipped-steps"
    )


def _fit_epochs(job: TrainJob, net: nn.Module, train_step: Step, batches: Batches) -> int:
    """Times some steps, undoes them, and returns the most epochs that fit in `fit_seconds`, the same on each rank."""
    optimizers = train_step.optimizers
    before = copy.deepcopy([net.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    moments = [time.perf_counter()]
    for step, batch in enumerate(batches.training(0, _FIT_STEPS)):
        _, norm = train_step.gradients(batch.to(batches.device), step)
        train_step.update(norm, step, _FIT_STEPS)
        if batches.device.type == "cuda":
            torch.cuda.synchronize()
        moments.append(time.perf_counter())
    net.load_state_dict(before[0])
    for optimizer, values in zip(optimizers, before[1:], strict=True):
        optimizer.load_state_dict(values)
        optimizer.state.clear()
    later = np.diff(moments)[_FIT_STEPS // 4 :]  # caches and memory aren't warm before
    slowest = torch.tensor(float(np.median(later)), device=batches.device)
    if batches.world_size > 1:
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    epoch_seconds = float(slowest) * batches.order.steps_per_epoch * _FIT_MARGIN
    choices = [epochs for epochs in FIT_EPOCHS if epochs <= job.recipe.epochs]
    return max([epochs for epochs in choices if epochs * epoch_seconds <= job.recipe.fit_seconds], default=1)


class _Trace:
    """Writes the key of every row that this rank trains on, a line a step, to RUN/rows/: on disks at once, elsewhere a
    file for each checkpoint that this rank has a part in.

    What is in no checkpoint is done again, and written then.
    """

    def __init__(self, job: TrainJob, data: Manifest, rank: int, world_size: int, first_step: int) -> None:
        split = data.split("train")
        self._keys = parquet.read_rows(job.dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
        self._name = files.join(job.run, "rows", f"from-step-{first_step:09d}-rank-{rank}-of-{world_size}")
        self._lines: list[str] = []
        self._file = None
        if files.is_local(job.run):
            os.makedirs(os.path.dirname(self._name), exist_ok=True)
            self._file = open(f"{self._name}.jsonl", "w", buffering=1)  # noqa: SIM115 - as long as the worker lives

    def write(self, step: int, batch: Batch) -> None:
        line = json.dumps({"step": step, "keys": [self._keys[row] for row in batch.rows]}) + "\n"
        if self._file:
            self._file.write(line)
        else:
            self._lines.append(line)

    def flush(self, step: int) -> None:
        if not self._file:
            files.write_bytes(f"{self._name}-to-{step:09d}.jsonl", "".join(self._lines).encode())
            self._lines.clear()


def _remark(state: RunState) -> str:
    line = state.history[-1]
    text = f"epoch {line['epoch']:.2f}  loss {line['loss']:.3f}  {line['images_per_second']:,.0f} images/s  "
    left_out = f"  left out: {len(state.quarantined):,}" if state.quarantined else ""
    skipped = f"  steps skipped: {len(state.skipped):,}" if state.skipped else ""
    return text + largest_shares(line["seconds"]) + left_out + skipped


def _evaluate(
    net: nn.Module,
    average: Average | None,
    batches: Batches,
    normalise: nn.Module,
    progress: Progress,
    watchdog: Watchdog,
) -> Predictions:
    """Returns the merged predictions on rank 0 and on all others alike."""

    def moving(stage: str, done: int, total: int, remark: str = "") -> None:
        watchdog.beat(f"evaluation batch {done}")
        progress(stage, done, total, remark)

    recipe, parts = batches.job.recipe, batches.parts
    rows = range(parts.first_row, parts.first_row + parts.rows)

    def left_out() -> list[int]:
        return [row for split, row in batches.quarantined([]) if split == parts.split and row in rows]

    predictor = Predictor(evaluated(net, average), normalise, len(batches.data.classes), recipe.loss, recipe.test_views)
    return predict_distributed(predictor, batches.validation(moving), rows, batches.world_size, left_out)


def _write_outputs(
    job: TrainJob,
    data: Manifest,
    net: nn.Module,
    state: RunState,
    world_size: int,
    predictions: Predictions,
    more: dict[str, Any],
) -> None:
    split = data.split(train_eval_split(data, job.hold_out).split)
    write_predictions(job.run, job.dataset, split, predictions)
    weights = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    files.write_bytes(files.join(job.run, checkpoint.MODEL_NAME), serialize_tensors(weights))
    values = {
        "recipe": asdict(job.recipe),
        "classes": list(data.classes),
        "dataset_digest": data.digest,
        "hold_out": job.hold_out,
        "world_size": world_size,
        "state": asdict(state),
        **more,
    }
    files.write_json(files.join(job.run, checkpoint.OUTPUT_NAME), values)


# --- starting it -------------------------------------------------------------------------------------------------


def check_job(job: TrainJob) -> Manifest:
    """Returns the data set's manifest. Raises a PipelineError if the job can't work, before anything is started."""
    data = manifest.load(job.dataset)
    parts = train_eval_split(data, job.hold_out)
    check_batch(job.recipe, max(1, job.num_workers, job.max_workers), parts.train_rows)
    if job.teacher:
        Teacher(job.teacher.uri, data.classes, job.recipe)
    return data


def claim_run(job: TrainJob, data: Manifest) -> None:
    """Writes the run's identity at the first start. Raises CheckpointError if it is another's."""
    place, mine = files.join(job.run, CONFIG_NAME), job.identity(data.digest)
    check_identity(job.run, claim_folder(place, mine), mine)


def run(job: TrainJob) -> None:
    """Trains and evaluates; returns when the outputs lie in the run. Needs Ray unless resident and without workers.

    Raises the PipelineError that a worker met, if it is one.
    """
    import ray.train
    import ray.train.torch

    filesystem, path = files.open_filesystem(job.run)
    parent, name = os.path.split(path)
    elastic = job.max_workers > job.num_workers > 0
    if elastic:  # it asks for the places of nodes that have just gone, too; then it waits this long, a minute else
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=scaling_config(
            (job.num_workers, job.max_workers) if elastic else job.num_workers,
            job.use_gpu,
            job.cpus_per_worker,
            job.resize_seconds,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # Judge says when it is enough
            callbacks=[Judge(job.run).as_callback()] if job.num_workers else [],
        ),
    )
    if job.num_workers:
        fit_trainer(trainer)
    else:
        trainer.fit()
