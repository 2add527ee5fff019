"""Runs of some steps of the real loop, in this process and without Ray."""

from dataclasses import dataclass

from pipeline.training.loop import Due


@dataclass(frozen=True)
class Steps:
    """A schedule of some steps with a line every second and a checkpoint now and then, and without the end of an epoch,
    which needs Ray.
    """

    last_step: int
    checkpoint_every: int = 100
    stage: str = "train"

    def due(self, step: int) -> Due:
        """Returns what is due after `step` steps."""
        return Due(line=step % 2 == 0, checkpoint=step % self.checkpoint_every == 0)

    def progress(self, step: int) -> tuple[int, int]:
        """Returns the steps done and the steps in all."""
        return step, self.last_step
