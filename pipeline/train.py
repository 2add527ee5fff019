"""Training on Ray Train: one function a worker runs, and what starts it.

Read `train_loop` top to bottom: it is the whole of training. What it needs from outside is in a `TrainJob`, what
it leaves behind lies below the job's run URI: checkpoints, `model.pt`, `predictions.parquet`.
"""

import copy
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from pipeline import checkpoint, evaluate, loader, manifest, shards, storage
from pipeline.augment import dropout_seed
from pipeline.decode import DecoderName, best_decoder
from pipeline.errors import CheckpointError, RecipeError
from pipeline.loader import Batch, Resident
from pipeline.manifest import Manifest
from pipeline.meter import Meter, RayMetrics
from pipeline.mix import Normalise, on_device
from pipeline.models import FastResNet, make_model
from pipeline.optim import learning_rate_factor, make_optimizers, sample_losses, set_learning_rates
from pipeline.order import Order
from pipeline.progress import Progress, silent
from pipeline.recipes import OnCorrupt, Recipe, check_batch
from pipeline.timing import remark
from pipeline.units import EvaluateUnits, TrainUnits
from pipeline.view import View

CONFIG_NAME, MODEL_NAME, PREDICTIONS_NAME = "config.json", "model.pt", "predictions.parquet"
FIT_EPOCHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32)
_HISTORY_POINTS_PER_EPOCH = 20
_WHITENING_IMAGES = 5000


@dataclass(frozen=True)
class TrainJob:
    """A training run. dataset and run are absolute URIs; num_workers 0 means in this process; decoder: on all nodes.

    on_corrupt: "stop", or "quarantine" to go on without images whose bytes have changed; they are counted and named.
    """

    dataset: str
    run: str
    recipe: Recipe
    seed: int = 0
    num_workers: int = 0
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    trace_rows: bool = False
    on_corrupt: OnCorrupt = "stop"
    decoder: DecoderName = field(default_factory=best_decoder)
    progress: Progress = silent

    def identity(self, digest: str) -> dict[str, Any]:
        """What a run is: two jobs of the same identity may continue each other's checkpoints."""
        values = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "dataset_digest": digest,
            "decoder": self.decoder,
        }
        identity: dict[str, Any] = json.loads(json.dumps(values))
        return identity


# --- the loop ----------------------------------------------------------------------------------------------------


def train_loop(config: dict[str, Any]) -> None:
    """What each worker runs. config: {"job": TrainJob}."""
    import ray.train.torch

    begin = time.perf_counter()
    job: TrainJob = config["job"]
    recipe, context = job.recipe, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu" and (job.num_workers or recipe.residency == "stream"):
        torch.set_num_threads(num_threads(recipe, context.get_local_world_size()))
    progress = job.progress if rank == 0 else silent

    data = manifest.load(job.dataset)
    torch.manual_seed(job.seed)
    net = make_model(recipe.model, len(data.classes), recipe.image_size_px)
    normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
    batches = Batches(job, data, world_size, rank, device, progress)
    resumed = checkpoint.latest(job.run)
    if resumed is None and isinstance(net, FastResNet):
        net.fit_whitening(normalise(batches.whitening_images().to(device)).cpu())
    net = net.to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(net)
    optimizers = make_optimizers(net, recipe.optimizer, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    autocast = make_autocast(recipe, device)
    order = batches.order

    def train_step(batch: Batch, step: int, factor: float) -> Tensor:
        """One step of gradient descent; returns the sum of this rank's sample losses."""
        set_learning_rates(optimizers, factor)
        epoch = step // order.steps_per_epoch
        mixed = on_device(
            batch.images, batch.labels, batch.positions, normalise, recipe.augment, job.seed, epoch, batch.keys
        )
        with autocast():
            logits = model(mixed.images).float()
        losses = sample_losses(recipe.loss, logits, batch.labels, recipe.label_smoothing)
        if mixed.share is not None and mixed.partner is not None:
            others = sample_losses(recipe.loss, logits, mixed.partner, recipe.label_smoothing)
            losses = mixed.share * losses + (1 - mixed.share) * others
        total = losses.sum()
        # DDP averages gradients over the ranks; this makes that the mean over the global batch, however it is split.
        (total * (world_size / order.batch_size(step))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total.detach()

    state = _State(epochs=recipe.epochs)
    if resumed is not None:
        state = _restore(checkpoint.load(resumed), net, optimizers)
    elif recipe.fit_seconds:
        progress("fit", 0, 0, "timing a few steps")
        state.epochs = _fit_epochs(job, net, optimizers, train_step, batches)
        progress("fit", 1, 1, f"{state.epochs} epochs fit in {recipe.fit_seconds:g} s")
    num_steps, steps_per_epoch = state.epochs * order.steps_per_epoch, order.steps_per_epoch
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    report_every = max(1, steps_per_epoch // _HISTORY_POINTS_PER_EPOCH)
    trace = _Trace(job, data, rank, world_size, state.step) if job.trace_rows else None

    stream, published = batches.training(state.step, num_steps), RayMetrics(storage.basename(job.run))
    meter = Meter(state.seconds, device, world_size, time.perf_counter() - begin)
    while state.step < num_steps:
        model.train()
        step = state.step
        batch = meter.next_batch(stream)
        if trace:
            trace.write(step, batch)
        batch = batch.to(device)
        meter.until_now("copy")
        torch.manual_seed(dropout_seed(job.seed, step, rank))
        factor = learning_rate_factor(recipe.schedule, step, num_steps, warmup_steps)
        meter.add(train_step(batch, step, factor), order.batch_size(step))
        meter.until_now("compute")
        state.step = step + 1

        ends_epoch = state.step % steps_per_epoch == 0
        if state.step % report_every == 0 or ends_epoch:
            state.history.append(meter.line(state.step, order, factor * recipe.learning_rate))
            state.quarantined = batches.quarantined(state.quarantined)
            progress("train", state.step, num_steps, _remark(state))
            if rank == 0:
                published.report(state.history[-1], len(state.quarantined))
        if ends_epoch and state.step < num_steps and batches.evaluates_after(state.step // steps_per_epoch):
            meter.until_now("other")
            scores = evaluate.metrics(_evaluate(net, batches, normalise, progress), data.classes)
            state.evaluations.append({"step": state.step, **{k: scores[k] for k in ("loss", "top1", "top5")}})
            meter.until_now("evaluate")
        if state.step % recipe.checkpoint_every_steps == 0 or ends_epoch:
            meter.settle()
            state.quarantined = batches.quarantined(state.quarantined)
            _save(job, state, net, optimizers, rank)
            meter.until_now("checkpoint")

    predictions = _evaluate(net, batches, normalise, progress)
    meter.until_now("evaluate")
    meter.settle()
    state.quarantined = batches.quarantined(state.quarantined)
    if rank == 0:
        _write_outputs(job, data, net, state, world_size, predictions)
    ray.train.report({"step": state.step})  # a barrier: no worker leaves before the outputs are there


@dataclass
class _State:
    """What a checkpoint holds besides weights: all that the rest of the run depends on, and what was seen so far.

    seconds: by stage (`timing.STAGES`); quarantined: (split, row) of each image that was left out.
    """

    epochs: int
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    quarantined: list[tuple[str, int]] = field(default_factory=list)


def _restore(saved: dict[str, Any], net: nn.Module, optimizers: list[torch.optim.Optimizer]) -> _State:
    net.load_state_dict(saved["model"])
    for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return _State(**saved["state"])


def _save(job: TrainJob, state: _State, net: nn.Module, optimizers: list[torch.optim.Optimizer], rank: int) -> None:
    import ray.train

    reported = None
    if rank == 0:
        values = {
            "model": net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "state": asdict(state),
        }
        filesystem, path = storage.open_filesystem(checkpoint.save(job.run, state.step, values))
        reported = ray.train.Checkpoint(path, filesystem)
        if not job.num_workers:  # elsewhere Ray Train removes what it no longer keeps
            checkpoint.prune(job.run)
    ray.train.report(
        {"step": state.step, **(state.history[-1] if state.history else {})},
        checkpoint=reported,
        checkpoint_dir_name=checkpoint.name(state.step),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,  # it lies in storage_path already
    )


def num_threads(recipe: Recipe, local_world_size: int) -> int:
    """Returns the threads of a CPU worker: its share of the machine's cores, of which reading needs one.

    More threads than cores are far worse than fewer: OpenMP's threads spin while they wait for one another.
    """
    cores = (os.cpu_count() or 1) - (recipe.residency == "stream")
    return max(1, cores // local_world_size)


def make_autocast(recipe: Recipe, device: torch.device) -> Any:
    """Returns a maker of contexts for the forward pass in the recipe's precision on `device`."""
    computes_bfloat16 = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))
    )
    enabled = recipe.precision == "bfloat16" or (recipe.precision == "auto" and computes_bfloat16)

    def autocast() -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    return autocast


def _fit_epochs(job: TrainJob, net: nn.Module, optimizers: Any, train_step: Any, batches: "Batches") -> int:
    """Times some steps, undoes them, and returns the most epochs that fit in `fit_seconds`, the same on each rank."""
    before = copy.deepcopy([net.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    stream, seconds = batches.training(0, 7), []
    for step, batch in enumerate(stream):
        start = time.perf_counter()
        train_step(batch.to(batches.device), step, 1.0)
        if batches.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    net.load_state_dict(before[0])
    for optimizer, values in zip(optimizers, before[1:], strict=True):
        optimizer.load_state_dict(values)
        optimizer.state.clear()
    slowest = torch.tensor(sorted(seconds[2:])[len(seconds[2:]) // 2], device=batches.device)
    if batches.world_size > 1:
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    epoch_seconds = float(slowest) * batches.order.steps_per_epoch * 1.05
    choices = [epochs for epochs in FIT_EPOCHS if epochs <= job.recipe.epochs]
    return max([epochs for epochs in choices if epochs * epoch_seconds <= job.recipe.fit_seconds], default=1)


class _Trace:
    """Writes the key of every row that this rank trains on, a line a step, to RUN/rows/ (local runs only)."""

    def __init__(self, job: TrainJob, data: Manifest, rank: int, world_size: int, first_step: int) -> None:
        if not storage.is_local(job.run):
            raise RecipeError("--trace-rows needs a local run directory; it appends line by line")
        directory = os.path.join(job.run, "rows")
        os.makedirs(directory, exist_ok=True)
        split = data.split("train")
        self._keys = shards.read_rows(job.dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
        path = os.path.join(directory, f"from-step-{first_step:09d}-rank-{rank}-of-{world_size}.jsonl")
        self._file = open(path, "w", buffering=1)  # noqa: SIM115 - open as long as the worker lives

    def write(self, step: int, batch: Batch) -> None:
        self._file.write(json.dumps({"step": step, "keys": [self._keys[row] for row in batch.rows]}) + "\n")


def _remark(state: _State) -> str:
    line = state.history[-1]
    text = f"epoch {line['epoch']:.2f}  loss {line['loss']:.3f}  {line['images_per_second']:,.0f} images/s  "
    left_out = f"  left out: {len(state.quarantined):,}" if state.quarantined else ""
    return text + remark(line["seconds"]) + left_out


# --- data --------------------------------------------------------------------------------------------------------


class Batches:
    """The batches of one worker, resident or streamed by recipe."""

    def __init__(
        self, job: TrainJob, data: Manifest, world_size: int, rank: int, device: torch.device, progress: Progress
    ) -> None:
        recipe = job.recipe
        self.job, self.data, self.world_size, self.rank, self.device = job, data, world_size, rank, device
        self.train, self.val = data.split("train"), data.split("val")
        groups, window = self.train.row_group_rows, recipe.shuffle_window_row_groups
        self.order = Order(groups, job.seed, recipe.global_batch_size, window, pairs=recipe.augment.mixes)
        self._corrupt: set[tuple[str, int]] = set()
        self.val_view = View(recipe.image_size_px, recipe.evaluate_resize_px, decoder=job.decoder)
        self.train_view = replace(self.val_view, augment=recipe.augment, seed=job.seed, ramp=recipe.size_ramp)
        self.resident: dict[str, Resident] = {}
        if recipe.residency == "resident":
            for name, view in (("train", self.train_view), ("val", self.val_view)):
                split = data.split(name)
                whole = loader.load_resident(job.dataset, split, view, progress, job.on_corrupt)
                self.resident[name] = whole.to(device)

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields this rank's batches of the steps from `first_step` to `num_steps`."""
        units = TrainUnits(self.order, num_steps, first_step, self.world_size, self.rank)
        if self.resident:
            batches = loader.resident_batches(self.resident["train"], units, self.train_view)
        else:
            batches = loader.stream_batches(self.job.dataset, self.train, units, self.train_view, self.job.on_corrupt)
        return self._noting("train", batches)

    def validation(self, progress: Progress) -> Iterator[Batch]:
        """Yields this rank's part of the val split."""
        units = EvaluateUnits(self.val.rows, evaluate.UNIT_ROWS, self.world_size, self.rank)
        if self.resident:
            batches = loader.resident_batches(self.resident["val"], units, self.val_view)
        else:
            batches = loader.stream_batches(self.job.dataset, self.val, units, self.val_view, self.job.on_corrupt)
        for batch in self._noting("val", batches):
            yield batch
            progress("evaluate", batch.unit + 1, len(units))

    def _noting(self, split: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._corrupt.update((split, row) for row in batch.corrupt.tolist())
            yield batch

    def quarantined(self, before: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Returns (split, row) of all images that any worker left out, those of `before` too. All ranks together."""
        parts: list[Any] = [self._corrupt]
        if self.job.on_corrupt == "quarantine" and self.world_size > 1:
            parts = [None] * self.world_size
            torch.distributed.all_gather_object(parts, self._corrupt)
        return sorted({(split, row) for split, row in before}.union(*parts))

    def evaluates_after(self, epoch: int) -> bool:
        """Whether the curve gets a point after this many epochs: after each of the first two, then every other."""
        return epoch <= 2 or epoch % 2 == 0

    def whitening_images(self) -> Tensor:
        """uint8 [<=5000, 3, S, S] of the train split, the same on every rank."""
        if self.resident:
            return self.resident["train"].images[:_WHITENING_IMAGES]
        return loader.sample_images(self.job.dataset, self.data, "train", _WHITENING_IMAGES, self.val_view)


def _evaluate(net: nn.Module, batches: Batches, normalise: nn.Module, progress: Progress) -> evaluate.Predictions:
    """Returns the merged predictions on rank 0 and on all others alike."""
    if batches.world_size > 1:  # BatchNorm's running statistics differ between ranks; rank 0's are the model's
        for buffer in net.buffers():
            torch.distributed.broadcast(buffer, 0)
    num_classes, loss = len(batches.data.classes), batches.job.recipe.loss
    part = evaluate.predict(net, batches.validation(progress), normalise, num_classes, loss)
    parts: list[Any] = [part]
    if batches.world_size > 1:
        parts = [None] * batches.world_size
        torch.distributed.all_gather_object(parts, part)
    left_out = [row for split, row in batches.quarantined([]) if split == "val"]
    return evaluate.merge(parts, batches.val.rows, left_out)


def _write_outputs(
    job: TrainJob, data: Manifest, net: nn.Module, state: _State, world_size: int, predictions: evaluate.Predictions
) -> None:
    values = {
        "model": {name: tensor.cpu() for name, tensor in net.state_dict().items()},
        "recipe": asdict(job.recipe),
        "classes": list(data.classes),
        "dataset_digest": data.digest,
        "world_size": world_size,
        "state": asdict(state),
    }
    table = pa.table(
        {
            "row": predictions.row,
            "label": predictions.label,
            "classes": list(predictions.classes),
            "probabilities": list(predictions.probabilities),
            "loss": predictions.loss,
        }
    )
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    storage.write_bytes(storage.join(job.run, PREDICTIONS_NAME), out.getvalue().to_pybytes())
    storage.write_bytes(storage.join(job.run, MODEL_NAME), checkpoint.dump(values))


# --- starting it -------------------------------------------------------------------------------------------------


def check_job(job: TrainJob) -> Manifest:
    """Returns the data set's manifest. Raises a PipelineError if the job can't work, before anything is started."""
    data = manifest.load(job.dataset)
    for split in ("train", "val"):
        data.split(split)
    check_batch(job.recipe, max(1, job.num_workers), data.split("train").rows)
    return data


def claim_run(job: TrainJob, data: Manifest) -> None:
    """Writes the run's identity at the first start. Raises CheckpointError if it is another's."""
    place, mine = storage.join(job.run, CONFIG_NAME), job.identity(data.digest)
    if storage.write_once(place, json.dumps(mine, indent=1).encode()):
        return
    theirs = json.loads(storage.read_bytes(place))
    differences = list(_differences(theirs, mine))
    if differences:
        raise CheckpointError(
            f"{job.run}: holds another run ({'; '.join(differences[:4])}); give another --run-dir or --run-name, "
            "or the same settings to continue it"
        )


def _differences(theirs: dict[str, Any], mine: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted({*theirs, *mine}):
        old, new = theirs.get(key), mine.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} was {old}, now {new}"


def run(job: TrainJob) -> None:
    """Trains and evaluates; returns when the outputs lie in the run. Needs Ray unless resident and without workers."""
    import ray.train
    import ray.train.torch

    filesystem, path = storage.open_filesystem(job.run)
    parent, name = os.path.split(path)
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": job.cpus_per_worker, **({"GPU": 1} if job.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=checkpoint.KEPT),
        ),
    )
    if job.num_workers:
        _fit_in_thread(trainer)
    else:
        trainer.fit()


def _fit_in_thread(trainer: Any) -> None:
    """In the main thread Ray Train takes Ctrl-C for itself and ends the process with a bare status 1."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
