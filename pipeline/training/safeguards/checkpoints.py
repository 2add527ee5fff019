"""Checkpoints of a run: which of those that are due are written, and what they hold."""

import time

from pipeline.evaluation.distributed import gather_objects
from pipeline.models.run_state import is_rank_local
from pipeline.training.job import TrainJob
from pipeline.training.worker import Worker

GPU_SECONDS = 10.0
"""Least seconds between two checkpoints on a GPU, which would wait for what it could compute again in that time."""


def least_seconds(job: TrainJob, device_type: str) -> float:
    """Returns the least seconds between two checkpoints of a job."""
    if job.checkpoint_seconds is not None:
        return job.checkpoint_seconds
    return GPU_SECONDS if device_type == "cuda" else 0.0


def is_time(worker: Worker, must: bool) -> bool:
    """Returns whether a checkpoint that is due after this step is written. All ranks together: rank 0's clock decides.

    must: without it something would be lost that no step computes again.
    """
    batches, seconds = worker.batches, least_seconds(worker.job, worker.batches.device.type)
    if must or not seconds:
        return True
    is_late = time.monotonic() - worker.saved_at >= seconds
    return gather_objects(is_late, batches.world_size)[0]


def save_checkpoint(worker: Worker) -> None:
    """Begins to write a checkpoint, while steps go on. All ranks together."""
    worker.state.quarantined = worker.batches.quarantined(worker.state.quarantined)
    write_checkpoint(worker)
    worker.meter.mark("checkpoint")


def write_checkpoint(worker: Worker, alone: bool = False) -> None:
    """Hands what a resumed run needs to the checkpoint writer. alone: this rank writes the parts of all ranks."""
    state = worker.state
    if worker.trace:
        worker.trace.flush(state.step)
    values = {
        **state.as_json(),
        "identity": worker.identity,
        "world_size": worker.batches.world_size,
        "classes": list(worker.data.classes),
    }
    worker.writer.save(state.step, worker.learner.tensors(state), values, is_rank_local=is_rank_local, alone=alone)
    worker.saved_step, worker.saved_at = state.step, time.monotonic()


def leave_evaluation(worker: Worker) -> None:
    """Raises StoppedError if a stop is requested, with a checkpoint of the step before the evaluation. On rank 0 alone.

    The other ranks are ended by Ray: rank 0 holds all that a checkpoint needs.
    """
    if worker.batches.rank == 0 and worker.interruption.is_requested():
        if worker.saved_step != worker.state.step:
            write_checkpoint(worker, alone=True)
        worker.interruption.leave_alone()
