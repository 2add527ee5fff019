"""The training loop.

Read `run_steps` top to bottom: a batch, the update of the weights, then what is due: a report, validation, a
checkpoint. `setup.py` makes the worker, `finish.py` writes what a finished run leaves, and `replay.py` runs the same
loop on another schedule.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.core.errors import DivergedError
from pipeline.core.progress import message
from pipeline.loader.augment import dropout_seed
from pipeline.loader.batch import Batch
from pipeline.models.checkpoint_writer import record_score
from pipeline.models.run_state import RunState, is_rank_local
from pipeline.training.finish import finish
from pipeline.training.outputs.lines import evaluation_line, progress_line
from pipeline.training.safeguards import early_stop
from pipeline.training.safeguards.divergence import explain_divergence
from pipeline.training.setup import set_up
from pipeline.training.validation import scores_of, validate
from pipeline.training.worker import Worker

_REPORTS_PER_EPOCH = 20


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
    """Trains until the schedule's last step, or until early stopping. All ranks together."""
    for batch in batches_until(worker, schedule.last_step):
        rate = step(worker, batch)
        due, stops = schedule.due(worker.state.step), worker.interruption.is_due()
        if due.report:
            report(worker, rate, schedule)
        else:
            show_step(worker, schedule)
        if due.checkpoint or stops:
            save_checkpoint(worker)
        elif due.preemption_check:
            save_if_preempted(worker)
        if stops:
            worker.interruption.leave()
        if due.validation:
            evaluate(worker)
        if due.epoch_end:
            end_epoch(worker)
        if due.validation and early_stop.is_over(worker):
            break


def batches_until(worker: Worker, last_step: int) -> Iterator[Batch]:
    """Yields this rank's batches, on its device, from the run's next step to `last_step`."""
    state = worker.state
    stream = worker.batches.training(state.step, last_step)
    while state.step < last_step:
        worker.learner.model.train()  # validation leaves it in evaluation mode
        batch = worker.meter.next_batch(stream)
        worker.watchdog.beat(f"batch {state.step}")
        if worker.trace:
            worker.trace.write(state.step, batch)
        batch = batch.to(worker.batches.device)
        worker.meter.mark("copy")
        yield batch


def step(worker: Worker, batch: Batch) -> float:
    """Updates the weights, or skips the step if its loss or gradient isn't finite. Returns the learning rate."""
    learner, state, number = worker.learner, worker.state, worker.state.step
    # Dropout draws from torch's generator; seeded here, it depends on (seed, step, rank) alone.
    torch.manual_seed(dropout_seed(worker.job.seed, number, worker.batches.rank))
    loss, norm = learner.train_step.gradients(batch, number)
    finite = may_update(worker, batch, loss, norm)
    if finite:
        rate = learner.train_step.update(norm, number, worker.num_steps)
    else:
        rate = learner.train_step.skip(number, worker.num_steps)
    learner.update_average(number + 1, worker.num_steps, skipped=not finite)
    worker.meter.add(loss, worker.batches.order.batch_size(number), skipped=not finite)
    worker.meter.mark("compute")
    state.step = number + 1
    worker.watchdog.beat(f"step {number}")
    return rate


def may_update(worker: Worker, batch: Batch, loss: torch.Tensor, norm: torch.Tensor) -> bool:
    """Returns whether loss and gradient are finite. Raises DivergedError where one more step may not be skipped."""
    number = worker.state.step
    try:
        return worker.guard.may_update(loss, norm, number, worker.state.skipped)
    except DivergedError as error:
        worker.log.event("diverged", number, "error", text=str(error))
        worker.writer.wait()  # the error names the newest checkpoint, which may still be on its way
        raise explain_divergence(error, worker.job, worker.data, batch, number, worker.batches.rank) from None


# --- what is due after a step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    report: bool = False
    validation: bool = False
    checkpoint: bool = False
    preemption_check: bool = False
    epoch_end: bool = False


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
    """The schedule of a training run. An epoch ends with a report, a checkpoint and, often, validation."""

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
        report_every = max(1, self.steps_per_epoch // _REPORTS_PER_EPOCH)
        return Due(
            report=epoch_end or step % report_every == 0,
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


def report(worker: Worker, rate: float, schedule: Schedule) -> None:
    """Adds a line to the history, and reports it to display, trackers and log. rate: learning rate of the last step."""
    state = worker.state
    line = worker.meter.line(state.step, worker.batches.order, rate)
    state.history.append({**line, "skipped_steps": len(state.skipped)})
    state.quarantined = worker.batches.quarantined(state.quarantined)
    worker.progress(schedule.stage, *schedule.progress(state.step), progress_line(state))
    worker.trackers.line(state.history[-1], len(state.quarantined))
    worker.log.event("train", **state.history[-1], quarantined_rows=len(state.quarantined))


def show_step(worker: Worker, schedule: Schedule) -> None:
    """Shows which step is done, between reports that may be minutes apart; once in a second at most."""
    if time.monotonic() - worker.shown_at > 1:
        state = worker.state
        worker.progress(schedule.stage, *schedule.progress(state.step), progress_line(state) if state.history else "")
        worker.shown_at = time.monotonic()


def evaluate(worker: Worker) -> None:
    """Evaluates on the validation split, and records the scores, top-1 for the checkpoint that was just saved, too.

    The checkpoint comes first, so that a run that is ended meanwhile loses no step; a run that goes on from it makes up
    for the evaluation (`owes_validation`).
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


def save_checkpoint(worker: Worker) -> None:
    """Begins to write a checkpoint, while steps go on. All ranks together."""
    worker.meter.settle()
    worker.state.quarantined = worker.batches.quarantined(worker.state.quarantined)
    write_checkpoint(worker)
    worker.meter.mark("checkpoint")


def write_checkpoint(worker: Worker, alone: bool = False) -> None:
    """Hands what a resumed run needs to the checkpoint writer. alone: this rank writes the parts of all ranks."""
    state, job = worker.state, worker.job
    if worker.trace:
        worker.trace.flush(state.step)
    values = {
        **state.as_json(),
        "identity": job.identity(worker.data.digest),
        "world_size": worker.batches.world_size,
        "classes": list(worker.data.classes),
    }
    worker.writer.save(state.step, worker.learner.tensors(state), values, is_rank_local=is_rank_local, alone=alone)


def save_if_preempted(worker: Worker) -> None:
    """Saves what there is time for, if the loss of a worker's node has been announced. On rank 0 alone."""
    learner, preemption = worker.learner, worker.preemption
    notice = preemption.new_notice(worker.writer, lambda: learner.tensors(worker.state))
    if notice is None:
        return
    worker.warn("notice", notice)
    if preemption.saves == "all":
        write_checkpoint(worker, alone=True)
    elif preemption.saves == "weights":
        worker.writer.salvage(worker.state.step, learner.evaluated_net().state_dict())
    worker.meter.mark("checkpoint")


def end_epoch(worker: Worker) -> None:
    """Reports the end of an epoch to Ray Train: a barrier of all ranks."""
    import ray.train

    ray.train.report({"step": worker.state.step, **worker.state.history[-1]})
