"""The training loop.

Read `run_steps` top to bottom: a batch, the update of the weights, then what is due: a report, a checkpoint,
validation. `setup.py` makes the worker, `finish.py` writes what a finished run leaves, and `replay.py` runs the same
loop on another schedule.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pipeline.core.errors import DivergedError
from pipeline.core.progress import message
from pipeline.loader.augment import dropout_seed
from pipeline.loader.batch import Batch
from pipeline.models.checkpoint_writer import record_score
from pipeline.models.run_state import RunState
from pipeline.training.finish import finish
from pipeline.training.on_device.rank_zero import Request
from pipeline.training.on_device.steps_in_flight import StepResult
from pipeline.training.outputs.lines import evaluation_line, progress_line
from pipeline.training.safeguards import early_stop
from pipeline.training.safeguards.checkpoints import is_time, save_checkpoint, write_checkpoint
from pipeline.training.safeguards.divergence import explain_divergence
from pipeline.training.setup import set_up
from pipeline.training.validation import scores_of, validate
from pipeline.training.worker import Worker

_LINES_PER_EPOCH = 20
_REPORT_SECONDS = 1.0


def train_loop(config: dict[str, Any]) -> None:
    """Trains and evaluates, as one worker of Ray Train. config: {"job": TrainJob}."""
    with contextlib.ExitStack() as exits:
        worker = set_up(config["job"], exits)
        schedule = TrainingSchedule.of(worker)
        if schedule.owes_validation(worker.state):
            evaluate(worker)
        if not early_stop.is_over(worker):  # a run that is resumed after it has stopped
            run_steps(worker, schedule)
        finish(worker)


def run_steps(worker: Worker, schedule: "Schedule") -> None:
    """Trains until the schedule's last step, or until early stopping. All ranks together.

    On a GPU the host launches steps ahead of it, and reads their losses some steps later. It catches up before
    everything that leaves the loop: checkpoint, validation, the end of an epoch.
    """
    for batch in batches_until(worker, schedule.last_step):
        rate = step(worker, batch)
        due = heed_clock(worker, schedule, schedule.due(worker.state.step))
        if due.line:
            worker.meter.end_line(worker.state.step, rate)
        request = read_results(worker, catch_up=due.leaves_the_loop)
        if due.leaves_the_loop or request.stop or request.save:
            report(worker, schedule, catch_up=True)
        elif request.report:
            report(worker, schedule)
        if due.checkpoint or request.stop or request.save:
            save_checkpoint(worker)
        elif due.preemption_check:
            save_if_preempted(worker)
        if request.stop:
            worker.interruption.leave()
        if due.validation:
            evaluate(worker)
        if due.epoch_end:
            end_epoch(worker)
        if due.validation and early_stop.is_over(worker):
            break


def heed_clock(worker: Worker, schedule: "Schedule", due: "Due") -> "Due":
    """Returns what is due, without a checkpoint where the last one was just now. All ranks together.

    The last step's is written in any case, and with early stopping that of each evaluation: it may be the best one. A
    network that is spread over ranks is saved before each evaluation, too: a stop during it can't gather the weights.
    """
    if not due.checkpoint:
        return due
    keeps_each = worker.job.recipe.early_stop_epochs > 0 or worker.learner.is_sharded
    must = worker.state.step == schedule.last_step or (due.validation and keeps_each)
    return replace(due, checkpoint=is_time(worker, must))


def batches_until(worker: Worker, last_step: int) -> Iterator[Batch]:
    """Yields this rank's batches, on its device, from the run's next step to `last_step`."""
    state = worker.state
    stream = worker.batches.training(state.step, last_step)
    while state.step < last_step:
        if not worker.learner.net.training:  # validation leaves it in evaluation mode
            worker.learner.model.train()
        batch = worker.meter.next_batch(stream)
        worker.watchdog.beat(f"batch {state.step}")
        if worker.trace:
            worker.trace.write(state.step, batch)
        batch = batch.to(worker.batches.device)
        worker.meter.mark("copy")
        yield batch


def step(worker: Worker, batch: Batch) -> float:
    """Launches the update of the weights, and returns the learning rate.

    Where loss or gradient isn't finite, on any rank, the update changes nothing: the device decides, unasked.
    """
    learner, state, number = worker.learner, worker.state, worker.state.step
    if learner.draws:
        _seed_dropout(worker, number)
    loss, norm = learner.train_step.gradients(batch, number)
    scale = learner.loss_scale.get("scale")
    found_inf = worker.in_flight.add(number, batch.rows, loss, norm, scale, worker.rank_zero.outgoing())
    rate = learner.train_step.update(norm, number, worker.num_steps, found_inf)
    learner.update_average(number + 1, worker.num_steps, found_inf)
    worker.meter.mark("compute")
    state.step = number + 1
    worker.watchdog.beat(f"step {number}")
    return rate


def _seed_dropout(worker: Worker, step: int) -> None:
    """Seeds torch's generators, which dropout draws from: it depends on (seed, step, rank) alone."""
    seed = dropout_seed(worker.job.seed, step, worker.batches.rank)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for devices of all kinds first
    if worker.batches.device.type == "cuda":
        torch.cuda.manual_seed(seed)


# --- what the host reads of steps --------------------------------------------------------------------------------


def read_results(worker: Worker, catch_up: bool = False) -> Request:
    """Reads the losses of steps that the device has passed, and returns what rank 0 requests of all ranks.

    catch_up: reads all, and waits for them. Raises DivergedError at a step that wasn't finite and may not be skipped.
    """
    if worker.batches.rank == 0:
        worker.rank_zero.request(_wish(worker))
    known = _known_steps(worker, catch_up)
    count_results(worker, known)
    request = worker.rank_zero.due(known)
    if (request.stop or request.save) and not catch_up:
        count_results(worker, worker.state.step)
    return request


def _known_steps(worker: Worker, catch_up: bool) -> int:
    """Returns how many steps of the run have been read, the same on all ranks."""
    return worker.state.step - (0 if catch_up else worker.in_flight.steps)


def _wish(worker: Worker) -> Request:
    """Returns what rank 0 wishes after a step: to stop if the user does, to report once in a second."""
    is_late = time.monotonic() - worker.reported_at > _REPORT_SECONDS
    if is_late:
        worker.reported_at = time.monotonic()
    return Request(worker.interruption.is_requested(), is_late)


def count_results(worker: Worker, up_to: int) -> None:
    """Counts the losses of steps before step `up_to`, and the steps that were skipped."""
    order = worker.batches.order
    for result in worker.in_flight.results(up_to):
        worker.rank_zero.receive(result.step, result.requests)
        counts = _passes(worker, result)
        worker.meter.count(result.step, result.loss, order.batch_size(result.step), skipped=not counts)


def _passes(worker: Worker, result: StepResult) -> bool:
    """Returns whether the loss of a step counts. Raises DivergedError where one more step may not be skipped."""
    try:
        return worker.guard.passes(result, worker.state.skipped)
    except DivergedError as error:
        worker.log.event("diverged", result.step, "error", text=str(error))
        worker.writer.wait()  # the error names the newest checkpoint, which may still be on its way
        raise explain_divergence(error, worker.job, worker.data, result, worker.batches.rank) from None


# --- what is due after a step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    line: bool = False
    """A line of the history ends; it is reported with others, once in a second."""
    validation: bool = False
    checkpoint: bool = False
    preemption_check: bool = False
    epoch_end: bool = False

    @property
    def leaves_the_loop(self) -> bool:
        """Whether something is due that needs the results of all steps so far."""
        return self.checkpoint or self.validation or self.epoch_end


class Schedule(Protocol):
    """Which steps are run, and what is due after each."""

    @property
    def stage(self) -> str:
        """Name of the stage, for the display."""

    @property
    def last_step(self) -> int:
        """Steps after which the loop ends, counted from the run's first."""

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps in all."""

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all, for the display."""


@dataclass(frozen=True)
class TrainingSchedule:
    """The schedule of a training run. An epoch ends with a line, a checkpoint and, often, validation."""

    last_step: int
    steps_per_epoch: int
    checkpoint_every_steps: int
    stage: str = "train"
    validate_every_epoch: bool = False

    @staticmethod
    def of(worker: Worker) -> "TrainingSchedule":
        """Returns the schedule of a worker's run."""
        steps_per_epoch = worker.batches.order.steps_per_epoch
        recipe = worker.job.recipe
        return TrainingSchedule(
            worker.num_steps,
            steps_per_epoch,
            recipe.checkpoint_every_steps,
            validate_every_epoch=recipe.early_stop_epochs > 0,
        )

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps in all."""
        epoch, steps_into_epoch = divmod(step, self.steps_per_epoch)
        epoch_end = steps_into_epoch == 0
        validated = epoch <= 2 or epoch % 2 == 0 or self.validate_every_epoch
        line_every = max(1, self.steps_per_epoch // _LINES_PER_EPOCH)
        return Due(
            line=epoch_end or step % line_every == 0,
            # After each of the first two epochs, then every other. The last step's validation is the final evaluation.
            validation=epoch_end and step < self.last_step and validated,
            checkpoint=epoch_end or step % self.checkpoint_every_steps == 0,
            preemption_check=True,
            epoch_end=epoch_end,
        )

    def owes_validation(self, state: RunState) -> bool:
        """Returns whether the validation that was due after the last step is missing: the run was ended before it."""
        done = [scores["step"] for scores in state.evaluations]
        return 0 < state.step not in done and self.due(state.step).validation

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all."""
        return step, self.last_step


def report(worker: Worker, schedule: Schedule, catch_up: bool = False) -> None:
    """Adds the lines that have ended to the history, and reports them to display, trackers and log. All ranks together.

    catch_up: all lines, and the time since the last of them is counted, too.
    """
    state, steps_per_epoch = worker.state, worker.batches.order.steps_per_epoch
    lines = worker.meter.settle(None if catch_up else _known_steps(worker, catch_up))
    if lines:
        state.quarantined = worker.batches.quarantined(state.quarantined)
    for line in lines:
        skipped = sum(step < line["step"] for step in state.skipped)
        place = {"step": line["step"], "epoch": line["step"] / steps_per_epoch}
        state.history.append({**place, **line, "skipped_steps": skipped})
        worker.trackers.line(state.history[-1], len(state.quarantined))
        worker.log.event("train", **state.history[-1], quarantined_rows=len(state.quarantined))
    remark = progress_line(state) if state.history else ""
    worker.progress(schedule.stage, *schedule.progress(state.step), remark)


def evaluate(worker: Worker) -> None:
    """Evaluates on the validation split, and records the scores, top-1 for the checkpoint of this step, too.

    A checkpoint that is due comes first, and one that a stop asks for meanwhile holds the same step; a run that goes on
    from it makes up for the evaluation (`owes_validation`).
    """
    state, meter = worker.state, worker.meter
    meter.mark("other")
    scores = scores_of(validate(worker), worker.data.classes)
    state.evaluations.append({"step": state.step, **scores})
    worker.trackers.evaluation(state.step, scores)
    worker.log.event("evaluation", state.step, **scores)
    message(worker.progress, evaluation_line(state.evaluations, worker.batches.order.steps_per_epoch))
    meter.mark("evaluate")
    worker.writer.wait()
    if worker.batches.rank == 0:
        record_score(worker.job.run, state.step, scores["top1"])
    meter.mark("checkpoint")


def save_if_preempted(worker: Worker) -> None:
    """Saves what there is time for, if the loss of a worker's node has been announced. On rank 0 alone.

    A network that is spread over ranks is saved by all of them, after a step or a few.
    """
    learner, preemption = worker.learner, worker.preemption
    notice = preemption.new_notice(worker.writer, lambda: learner.tensors(worker.state))
    if notice is None:
        return
    worker.warn("notice", notice)
    count_results(worker, worker.state.step)
    if learner.is_sharded:
        worker.rank_zero.request(Request(save=preemption.saves != ""))
    elif preemption.saves == "all":
        write_checkpoint(worker, alone=True)
    elif preemption.saves == "weights":
        worker.writer.salvage(worker.state.step, learner.evaluated_net().state_dict())
    worker.meter.mark("checkpoint")


def end_epoch(worker: Worker) -> None:
    """Reports the end of an epoch to Ray Train: a barrier of all ranks."""
    import ray.train

    ray.train.report({"step": worker.state.step, **worker.state.history[-1]})
