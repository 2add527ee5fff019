"""Preemption: what can still be saved when the cluster announces that a worker's node will be taken away."""

import time
from collections.abc import Callable
from typing import Any, Literal

from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.run_state import MODEL
from pipeline.models.tensor_file import Tensors

Saves = Literal["all", "weights", ""]
_USED_SHARE = 0.8  # of the time until the deadline; a guess, the rest is for what can't be foreseen


class PreemptionWatcher:
    """Checks, on rank 0, whether Ray announces the loss of a worker's node, and decides what can still be saved.

    No rank waits for another: rank 0 holds all tensors that a checkpoint needs.
    """

    def __init__(self, rank: int) -> None:
        self._watches, self._deadline_ms = rank == 0, -1
        self.saves: Saves = ""
        """What the last notice leaves time for: a whole checkpoint, the weights alone, or nothing."""

    def new_notice(self, writer: CheckpointWriter, tensors: Callable[[], Tensors]) -> str | None:
        """Returns a line about a notice that hasn't been returned before, and sets `saves`; None without one.

        writer: for the speed of earlier checkpoints; tensors: returns what a checkpoint would hold.
        """
        info = preemption_info() if self._watches else None
        if info is None or info.deadline_ms == self._deadline_ms:
            return None
        self._deadline_ms = info.deadline_ms
        seconds_left = (info.deadline_ms / 1000 - time.time()) if info.deadline_ms else float("inf")
        self.saves, seconds = affordable(writer, tensors(), _USED_SHARE * seconds_left)
        action = {
            "all": "a checkpoint is written now",
            "weights": f"time for the weights ({checkpoint.SALVAGE_NAME}), not for a checkpoint ({seconds:.1f} s)",
            "": f"no time to write anything (a checkpoint takes {seconds:.1f} s)",
        }[self.saves]
        ranks = ", ".join(str(rank) for rank in info.preempted_ranks)
        return f"the node of worker {ranks} is taken away in {seconds_left:.0f} s: {action}"


def affordable(writer: CheckpointWriter, tensors: Tensors, seconds: float) -> tuple[Saves, float]:
    """Returns what can be written within `seconds` at the speed measured so far, and the seconds that all would take.

    Before the first checkpoint nothing is measured, and everything counts as affordable.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    whole = writer.seconds_for(sum(sizes.values())) or 0.0
    weights = writer.seconds_for(sum(size for name, size in sizes.items() if name.startswith(MODEL))) or 0.0
    return "all" if whole <= seconds else "weights" if weights <= seconds else "", whole


def preemption_info() -> Any:
    """Returns what Ray Train knows of an announced loss of a node: deadline_ms and preempted_ranks; None of none."""
    # The public get_preemption_info() is a barrier of all workers at every step; this context has the answer already.
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info
    except (RuntimeError, AttributeError):  # training in this process has no such context
        return None
