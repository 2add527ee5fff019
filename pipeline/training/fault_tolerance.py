"""What happens when workers fail: who starts again, when it is enough, and what is saved before a node goes."""

import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

import torch

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.cluster.ray_tasks import ray_is_initialized
from pipeline.core.errors import ClusterError
from pipeline.models import checkpoint
from pipeline.models.checkpoint_writer import CheckpointWriter
from pipeline.models.run_state import MODEL
from pipeline.models.tensor_file import Tensors
from pipeline.storage import files
from pipeline.training.trackers import STARTS

_MOST_FAILURES = 3
_USED_SHARE = 0.8  # of the notice; the rest is for what can't be foreseen


class Judge:
    """Asked by Ray Train's controller, which starts failed workers again without end; says when it is enough.

    An error that is the user's to mend is raised at once: the same would happen again. Anything else may happen as
    often as it likes while checkpoints get on; after three failures between two checkpoints the run ends.
    """

    def __init__(self, run: str) -> None:
        self._run, self._last, self._failures = run, "", 0

    def as_callback(self) -> Any:
        """Returns it as a callback of Ray Train."""
        from ray.train import UserCallback

        class Callback(UserCallback):  # type: ignore[misc]
            def after_exception(callback, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: N805
                self.judge(worker_exceptions)

        return Callback()

    def judge(self, worker_exceptions: dict[int, Exception]) -> None:
        """Raises what ends the run, if anything does. worker_exceptions: by rank."""
        for error in worker_exceptions.values():
            if (mine := pipeline_error(error)) is not None:
                raise mine
        now = checkpoint.latest(self._run) or ""
        self._failures = self._failures + 1 if now == self._last else 1
        self._last = now
        if self._failures > _MOST_FAILURES:
            first = str(next(iter(worker_exceptions.values()))).strip().splitlines()
            raise ClusterError(
                f"the workers failed {self._failures} times without getting from {now or 'the start'} to the next "
                f"checkpoint; last: {first[-1] if first else 'no message'}; mend that and give the same command again"
            )


def note_start(run: str, rank: int, world_size: int, step: int) -> str:
    """Writes down that the run starts, or starts again, at a step. Returns a token that this start's ranks share."""
    tokens: list[Any] = [uuid.uuid4().hex[:8]]
    nodes: list[Any] = [_node()]
    if world_size > 1:
        torch.distributed.broadcast_object_list(tokens, src=0)
        nodes = nodes * world_size
        torch.distributed.all_gather_object(nodes, _node())
    if rank == 0:
        now = time.time()
        values = {"time": now, "step": step, "world_size": world_size, "nodes": nodes}
        files.write_json(files.join(run, STARTS, f"{int(1000 * now)}.json"), values)
    return str(tokens[0])


def _node() -> str:
    """Returns the ID of this process's Ray node, or the machine's name where there is no Ray."""
    if not ray_is_initialized():
        return socket.gethostname()
    import ray

    return str(ray.get_runtime_context().get_node_id())


def read_starts(run: str) -> list[dict[str, Any]]:
    """Returns time (seconds since the epoch), step, world_size and the ranks' nodes of each start, in their order."""
    folder = files.join(run, STARTS)
    names = sorted(name for name, _ in files.list_files(folder))
    return [files.read_json(files.join(folder, name)) for name in names]


class Notice:
    """Looks, on rank 0, whether Ray says that a worker's node will be taken away, and decides what can still be saved.

    saves: for what the last notice leaves time: a whole checkpoint, the weights alone, or nothing.
    """

    def __init__(self, rank: int) -> None:
        self._on, self._deadline_ms = rank == 0, -1
        self.saves: Literal["all", "weights", ""] = ""

    def seen(self, writer: CheckpointWriter, tensors: Callable[[], Tensors]) -> str | None:
        """Returns a line about a new notice, or None. Nothing waits for other ranks: rank 0 holds all that is
        needed.
        """
        info = _preemption() if self._on else None
        if info is None or info.deadline_ms == self._deadline_ms:
            return None
        self._deadline_ms = info.deadline_ms
        left = (info.deadline_ms / 1000 - time.time()) if info.deadline_ms else float("inf")
        self.saves, seconds = affordable(writer, tensors(), _USED_SHARE * left)
        what = {
            "all": "a checkpoint is written now",
            "weights": f"time for the weights ({checkpoint.SALVAGE_NAME}), not for a checkpoint ({seconds:.1f} s)",
            "": f"no time to write anything (a checkpoint takes {seconds:.1f} s)",
        }[self.saves]
        ranks = ", ".join(str(rank) for rank in info.preempted_ranks)
        return f"the node of worker {ranks} goes in {left:.0f} s: {what}"


def affordable(
    writer: CheckpointWriter, tensors: Tensors, seconds: float
) -> tuple[Literal["all", "weights", ""], float]:
    """Returns what can be written in so many seconds at the rate measured so far, and how long all would take."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    whole = writer.seconds_for(sum(sizes.values())) or 0.0
    weights = writer.seconds_for(sum(size for name, size in sizes.items() if name.startswith(MODEL))) or 0.0
    return "all" if whole <= seconds else "weights" if weights <= seconds else "", whole


def _preemption() -> Any:
    # The public get_preemption_info() is a barrier of all workers, at every step; each has the answer already.
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info
    except (RuntimeError, AttributeError):  # in this process alone there is no context
        return None
