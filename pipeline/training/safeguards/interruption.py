"""Interruption: Ctrl-C or a signal ends a run after its running step, with a checkpoint.

The signal arrives in the process that started the run; the steps are its workers'. Rank 0 asks after each step whether
a stop is requested and tells the other ranks (`RankZero`), so that all stop after the same step.
"""

from typing import NoReturn

import torch

from pipeline.core.errors import StoppedError
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.training.job import TrainJob
from pipeline.training.outputs.lines import epoch_of
from pipeline.training.worker_data import Batches


class Interruption:
    """Tells whether the run is to stop (`TrainJob.stop`, called by rank 0 alone), and ends it with its state saved.

    num_steps: of the whole run.
    """

    def __init__(self, job: TrainJob, batches: Batches, writer: CheckpointWriter, num_steps: int) -> None:
        self._job, self._batches, self._writer, self._num_steps = job, batches, writer, num_steps

    def is_requested(self) -> bool:
        """Returns whether a stop is requested. On rank 0 alone."""
        return self._job.stop()

    def leave(self) -> NoReturn:
        """Raises StoppedError when the checkpoint that is being written is complete. All ranks together."""
        self._writer.wait()
        if self._batches.world_size > 1:
            torch.distributed.barrier()  # the first rank to leave ends the others; rank 0 publishes the checkpoint
        raise self._stopped()

    def leave_alone(self) -> NoReturn:
        """Raises StoppedError when the checkpoint that is being written is complete. On rank 0 alone."""
        self._writer.wait()
        raise self._stopped()

    def _stopped(self) -> StoppedError:
        """Returns the error that ends the run, which names the newest checkpoint."""
        newest = checkpoint.latest(self._job.run)
        if newest is None:
            return StoppedError(f"{self._job.run}: stopped, and no checkpoint could be written")
        step = int(checkpoint.read_state(newest)["step"])
        epoch = epoch_of(step, self._batches.order.steps_per_epoch)
        return StoppedError(f"stopped at step {step:,} of {self._num_steps:,} (epoch {epoch}); checkpoint {newest}")
