"""Losses and gradients that aren't finite: such a step is skipped, or ends the run with an error that explains it."""

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import DivergedError
from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.loader.batch import Batch
from pipeline.models import checkpoint
from pipeline.storage import files
from pipeline.training.job import TrainJob


class FiniteGuard:
    """Checks each step's loss and gradient before the weights are updated.

    max_skipped: steps that may be skipped in the whole run; 0 ends it at the first. The ranks agree: the norm of the
    gradient is the same on all of them, and where steps may be skipped, they also exchange whether their losses are
    finite, one all-reduce a step.
    """

    def __init__(self, max_skipped: int, world_size: int, device: torch.device) -> None:
        self._max_skipped, self._world_size, self._device = max_skipped, world_size, device

    def may_update(self, loss: Tensor, norm: Tensor, step: int, skipped: list[int]) -> bool:
        """Returns whether the weights may be updated; if not, adds the step to `skipped`.

        loss: scalar, the sum of this rank's sample losses; norm: scalar, of the gradient. Raises DivergedError if one
        of them isn't finite and `max_skipped` steps are skipped already.
        """
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        if self._max_skipped and self._world_size > 1:
            flag = finite.to(torch.float32)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
            finite = flag > 0
        if bool(finite):
            return True
        if len(skipped) >= self._max_skipped:
            raise DivergedError(f"step {step}: the loss is {float(loss)} and the gradient's norm {float(norm)}")
        skipped.append(step)
        return False


def explain_divergence(
    error: DivergedError, job: TrainJob, data: Manifest, batch: Batch, step: int, rank: int
) -> DivergedError:
    """Returns the error with images, checkpoint and remedy in its message; writes the batch's keys into the run.

    batch: this rank's part of the global batch of `step`.
    """
    keys = parquet.read_rows(job.dataset, data.split("train"), np.sort(batch.rows), ("key",))["key"].to_pylist()
    place = files.join(job.run, f"diverged-step-{step}-rank-{rank}.json")
    files.write_json(place, {"step": step, "rank": rank, "keys": keys})
    last = checkpoint.latest(job.run)
    return DivergedError(
        f"{error} on rank {rank}; nothing was updated. Images {', '.join(keys[:3])} and {max(0, len(keys) - 3)} more "
        f"({place}); last good checkpoint: {last or 'none'}; lower learning_rate, or skip such steps with "
        "--max-skipped-steps"
    )
