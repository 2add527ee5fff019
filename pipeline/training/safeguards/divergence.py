"""Losses and gradients that aren't finite: such a step is skipped, or ends the run with an error that explains it."""

import numpy as np

from pipeline.core.errors import DivergedError
from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.loader.sample_order import Rows
from pipeline.models import checkpoint
from pipeline.storage import files
from pipeline.training.job import TrainJob
from pipeline.training.on_device.steps_in_flight import StepResult


class FiniteGuard:
    """Counts the steps whose loss or gradient wasn't finite. Those changed nothing: the device decided so itself.

    max_skipped: steps that may be skipped in the whole run; 0 ends it at the first. In float16 a gradient that a lower
    scale makes finite isn't counted: it is how the scale is found.
    """

    def __init__(self, max_skipped: int) -> None:
        self._max_skipped = max_skipped

    def passes(self, result: StepResult, skipped: list[int]) -> bool:
        """Returns whether a step's loss counts; if not, adds the step to `skipped`.

        Raises DivergedError if the step isn't finite and `max_skipped` steps are skipped already.
        """
        if result.is_finite or result.is_overflow:
            return True
        if len(skipped) >= self._max_skipped:
            raise DivergedError(
                f"step {result.step}: the loss is {result.own_loss} and the gradient's norm {result.norm}"
            )
        skipped.append(result.step)
        return False


def explain_divergence(
    error: DivergedError, job: TrainJob, data: Manifest, result: StepResult, rank: int
) -> DivergedError:
    """Returns the error with images, checkpoint and remedy in its message; writes the batch's keys into the run."""
    rows: Rows = np.sort(result.rows)
    keys = parquet.read_rows(job.dataset, data.split("train"), rows, ("key",))["key"].to_pylist()
    place = files.join(job.run, f"diverged-step-{result.step}-rank-{rank}.json")
    files.write_json(place, {"step": result.step, "rank": rank, "keys": keys})
    last = checkpoint.latest(job.run)
    return DivergedError(
        f"{error} on rank {rank}; nothing was updated. Images {', '.join(keys[:3])} and {max(0, len(keys) - 3)} more "
        f"({place}); last good checkpoint: {last or 'none'}; lower learning_rate, or skip such steps with "
        "--max-skipped-steps"
    )
