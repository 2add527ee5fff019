"""Set-up of a training worker: everything that its steps need, in the state that the run is in."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config.recipe import Recipe
from pipeline.core.progress import Progress, begin, message, silent
from pipeline.core.shares import counted
from pipeline.core.structured_log import RunLog, silent_log
from pipeline.dataset.manifest import Manifest
from pipeline.loader.batch import Batch
from pipeline.loader.normalise import Normalise
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.device.architecture import check_architecture
from pipeline.models.device.compiling import compile_network, stand_in, steps_of_each_size, warm_up
from pipeline.models.device.settings import training_settings
from pipeline.models.device.sharding import shard
from pipeline.models.distillation import Teacher
from pipeline.models.factory import recipe_model
from pipeline.models.pretrained.fit import follow_quickly, load_pretrained
from pipeline.models.run_state import Average, RunState
from pipeline.models.small_networks import Whitened
from pipeline.models.weight_averages import LookAhead, WeightAverage
from pipeline.training.fit_epochs import fit_epochs
from pipeline.training.job import TrainJob
from pipeline.training.on_device.rank_zero import RankZero
from pipeline.training.on_device.steps_in_flight import StepsInFlight
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.outputs.lines import start_line
from pipeline.training.outputs.live_report import live_report
from pipeline.training.resume import note_start, resume
from pipeline.training.row_trace import RowTrace
from pipeline.training.safeguards.divergence import FiniteGuard
from pipeline.training.safeguards.interruption import Interruption
from pipeline.training.safeguards.preemption import PreemptionWatcher
from pipeline.training.safeguards.watchdog import Watchdog
from pipeline.training.selection.choose import check_selection, select_rows
from pipeline.training.step_meter import Meter
from pipeline.training.trackers.base import Trackers
from pipeline.training.train_step import TrainStep, num_threads
from pipeline.training.transfer.head import fit_head
from pipeline.training.worker import Learner, Worker
from pipeline.training.worker_data import Batches

# Without `broadcast_buffers` each rank keeps its own statistics of BatchNorm while it trains, where nothing reads them.
# Those of rank 0 are saved, and an evaluation gives them to all ranks (`predict_distributed`).
DDP_SETTINGS = {"gradient_as_bucket_view": True, "broadcast_buffers": False}

Watched = tuple[Progress, Callable[[str], None]]


@dataclass(frozen=True)
class Place:
    """The place of a process in a run: its rank, the number of ranks, those on its machine, and its device."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @staticmethod
    def alone(device: torch.device) -> "Place":
        """Returns the place of a process that trains by itself, without Ray. "cuda" is the first GPU."""
        # torch.cuda.set_device refuses a device without a number.
        return Place(0, 1, 1, torch.device("cuda", 0) if device == torch.device("cuda") else device)

    @staticmethod
    def in_ray() -> "Place":
        """Returns the place of this worker of Ray Train."""
        import ray.train.torch

        context, device = ray.train.get_context(), ray.train.torch.get_device()
        return Place(context.get_world_rank(), context.get_world_size(), context.get_local_world_size(), device)


def set_up(
    job: TrainJob, exits: contextlib.ExitStack, place: Place | None = None, batches: Batches | None = None
) -> Worker:
    """Returns this process's worker, ready for the run's next step. exits: closes what set-up opens.

    All ranks together. The order matters: random numbers are drawn by the network's initialisation first, and all ranks
    have to take part in the same collective operations.
    place: of this process; None asks Ray Train. batches: of this job and place, for who trains on the same decoded
    images again and again; None loads them.
    """
    started = time.perf_counter()
    place = place or Place.in_ray()
    rank, world_size, device = place.rank, place.world_size, place.device
    _prepare_process(job, place, exits)
    progress = job.progress if rank == 0 else silent
    watchdog = Watchdog(job.hang_seconds, lambda line: progress("watch", 0, 0, line))
    exits.callback(watchdog.stop)
    data = job.read_manifest()
    begin(progress, f"building {job.recipe.model}")
    torch.manual_seed(job.seed)
    net = recipe_model(job.recipe, len(data.classes))
    batches = batches or Batches(job, data, world_size, rank, device, progress)
    batches, select_seconds = select_rows(job, batches, progress, watchdog.beat)
    resumed = checkpoint.latest(job.run)
    learner, state = _new_or_resumed(job, net, batches, resumed, exits, (progress, watchdog.beat))
    watchdog.beat("its set-up")
    choosing = _note_choosing(state, select_seconds, resumed)
    trace = RowTrace(job, data, rank, world_size, state.step) if job.trace_rows else None
    token = note_start(job, rank, world_size, state.step)
    last_step = state.epochs * batches.order.steps_per_epoch
    log = _begin_log(job, batches, state, last_step)
    message(progress, start_line(state.step, last_step, batches.order.steps_per_epoch, resumed))

    def warn(stage: str, line: str) -> None:
        progress(stage, 0, 0, line)
        log.event(stage, state.step, "warning", text=line)

    writer = CheckpointWriter(job.run, rank, world_size, token, lambda line: warn("checkpoint", line))
    trackers = _start_trackers(job, batches, state, warn, exits)
    return Worker(
        job=job,
        data=data,
        batches=batches,
        learner=learner,
        state=state,
        in_flight=StepsInFlight(world_size, device),
        rank_zero=RankZero(world_size),
        guard=FiniteGuard(job.max_skipped_steps),
        writer=writer,
        preemption=PreemptionWatcher(rank),
        trackers=trackers,
        trace=trace,
        meter=Meter(state.seconds, state.losses, device, world_size, time.perf_counter() - started - choosing),
        watchdog=watchdog,
        interruption=Interruption(job, batches, writer, last_step),
        log=log,
        progress=progress,
        warn=warn,
        saved_step=-1 if resumed is None else state.step,
    )


def _new_or_resumed(
    job: TrainJob,
    net: nn.Module,
    batches: Batches,
    resumed: str | None,
    exits: contextlib.ExitStack,
    watched: Watched,
) -> tuple[Learner, RunState]:
    """Returns what learns, and the state of the run: at its first step, or as in the checkpoint `resumed`.

    watched: progress, and what keeps the watchdog from ending a process that is at work.
    """
    progress, beat = watched
    if job.pretrained:
        follow_quickly(net)
    if resumed is None:
        _initialise(net, job, batches)
    started = time.perf_counter()
    if resumed is None and job.recipe.fit_head != "none":
        fit_head(net, job.recipe, batches, progress, beat)
    feature_seconds = time.perf_counter() - started
    learner = _make_learner(net, job, batches, exits)
    state = None if resumed is None else _resume(resumed, job, learner, batches.data)
    if job.compiles:
        _warm_up(learner, batches, state.step if state else 0, progress)
    state = state or _new_state(job, learner, batches, progress)
    if resumed is None and job.recipe.fit_head != "none":
        state.seconds["features"] = feature_seconds
    state.selection = check_selection(batches.order.selection, state.selection)
    return learner, state


def _note_choosing(state: RunState, select_seconds: float, resumed: str | None) -> float:
    """Notes the seconds of the selection; returns those of this start that count as stages of their own."""
    state.seconds["select"] = state.seconds.get("select", 0.0) + select_seconds
    return select_seconds + (0.0 if resumed else state.seconds.get("features", 0.0))


def _begin_log(job: TrainJob, batches: Batches, state: RunState, last_step: int) -> RunLog:
    log = RunLog(job.name, batches.rank, batches.world_size) if job.num_workers else silent_log()
    log.event("start", state.step, recipe=job.recipe.name, dataset=batches.data.digest, last_step=last_step)
    return log


def _start_trackers(
    job: TrainJob, batches: Batches, state: RunState, warn: Callable[[str, str], None], exits: contextlib.ExitStack
) -> Trackers:
    """Returns the trackers of this rank. exits: tells them at the end whether the run is finished."""
    report = live_report(job, batches.data, state, batches.order.steps_per_epoch)
    makers = () if batches.rank else (report, *job.trackers)
    trackers = Trackers(makers, job, state.step, lambda line: warn("tracking", line))
    exits.push(lambda kind, *_: trackers.end(finished=kind is None))
    return trackers


def _prepare_process(job: TrainJob, place: Place, exits: contextlib.ExitStack) -> None:
    """Sets the device of this process, torch's settings for it, and the number of threads.

    Threads, the state of torch's random generators and its settings for the device are put back at the end: the
    process may be the user's own.
    """
    exits.enter_context(training_settings(job.deterministic))  # first: before anything uses the GPU
    device = place.device
    check_architecture(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    exits.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
    exits.callback(torch.set_num_threads, torch.get_num_threads())
    # A run in this process on resident data leaves torch's own number of threads: all cores.
    if device.type == "cpu" and (job.num_workers or job.recipe.residency == "stream"):
        torch.set_num_threads(num_threads(job.recipe, place.local_world_size))


def _initialise(net: nn.Module, job: TrainJob, batches: Batches) -> None:
    """Gives a new run its first weights: pretrained ones, or whitening fitted to training images."""
    if job.pretrained:
        load_pretrained(net, job.pretrained.uri)
    elif isinstance(net, Whitened):
        normalise = Normalise(job.recipe.pixel_mean, job.recipe.pixel_std).to(batches.device)
        net.fit_whitening(normalise(batches.whitening_images().to(batches.device)))


def _make_learner(net: nn.Module, job: TrainJob, batches: Batches, exits: contextlib.ExitStack) -> Learner:
    recipe = job.recipe
    unsharded = copy.deepcopy(net).cpu() if job.fsdp and batches.world_size > 1 else None
    if unsharded is not None:
        net = model = net.to(batches.device)  # FSDP wants its tensors contiguous
        shard(net, batches.device, batches.world_size)
    else:
        net = net.to(batches.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = _parallel(net) if batches.world_size > 1 else net
    optimizers = make_optimizers(net, recipe)
    average = make_average(recipe, net)
    compiled = compile_network(model, exits) if job.compiles else model
    teacher = Teacher(job.teacher.uri, batches.data.classes, recipe).to(batches.device) if job.teacher else None
    train_step = TrainStep(recipe, compiled, optimizers, batches.order, batches.world_size, teacher)
    return Learner(net, model, average, train_step, unsharded)


def _parallel(net: nn.Module) -> nn.Module:
    import ray.train.torch

    model: nn.Module = ray.train.torch.prepare_model(net, parallel_strategy_kwargs=DDP_SETTINGS)
    return model


def _warm_up(learner: Learner, batches: Batches, first_step: int, progress: Progress) -> None:
    """Compiles the network for each size of batch that this rank gets. All ranks together."""
    order, place = batches.order, (batches.world_size, batches.rank)
    size_px = batches.train_transform.size_at(first_step // order.steps_per_epoch)

    def stand_ins() -> Iterator[tuple[int, Batch]]:
        for step in steps_of_each_size(order, first_step):
            rows = len(order.rows(step, *place))
            progress("compile", 0, 0, f"for {counted(rows, 'image')} of {size_px} px")
            yield step, stand_in(rows, size_px, batches.device, order.epochs(step, *place))

    learner.model.train()
    warm_up(learner.net, learner.train_step.gradients, stand_ins())
    progress("compile", 1, 1)


def _new_state(job: TrainJob, learner: Learner, batches: Batches, progress: Progress) -> RunState:
    """Returns the state of a run before its first step; its epochs fit into the recipe's time, if that is limited."""
    recipe = job.recipe
    state = RunState(epochs=0 if recipe.fit_head == "only" else recipe.epochs)
    if recipe.fit_seconds and state.epochs:
        progress("fit", 0, 0, "timing a few steps")
        state.epochs = fit_epochs(recipe, learner.net, learner.train_step, batches)
        progress("fit", 1, 1, f"{counted(state.epochs, 'epoch')} fit in {recipe.fit_seconds:g} s")
    return state


def _resume(uri: str, job: TrainJob, learner: Learner, data: Manifest) -> RunState:
    identity = job.identity(data.digest)
    return resume(uri, identity, learner.net, learner.train_step.optimizers, learner.average, learner.loss_scale)


def make_average(recipe: Recipe, net: nn.Module) -> Average | None:
    """Returns the average of weights that a recipe asks for, or None."""
    if recipe.ema_decay:
        return WeightAverage(net, recipe.ema_decay, recipe.ema_every_steps, recipe.ema_warmup_power)
    return LookAhead(net, recipe.look_ahead_every_steps) if recipe.look_ahead_every_steps else None
