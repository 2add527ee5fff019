"""Starts of a run: the record of each, and the state that a checkpoint holds."""

import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

from pipeline.cluster.ray_tasks import ray_is_initialized
from pipeline.core.errors import CheckpointError
from pipeline.evaluation.distributed import gather_objects
from pipeline.models import checkpoint
from pipeline.models.identity import check_identity
from pipeline.models.run_state import Average, RunState, restore
from pipeline.models.tensor_file import Tensors
from pipeline.storage import files
from pipeline.training.job import TrainJob

CONFIG_NAME = "config.json"  # the identity of a run, written at its first start
STARTS = "starts"
# Fields of a job that change the last bits, and are no part of its identity.
_NUMERICS = ("compile", "deterministic", "fsdp")


def resume(
    uri: str,
    identity: dict[str, Any],
    net: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: Average | None,
    loss_scale: Tensors | None = None,
) -> RunState:
    """Loads the checkpoint at `uri` into network, optimisers and average, and returns the state of its run.

    identity: of this run (`TrainJob.identity`). loss_scale: loaded, too, in float16. Raises CheckpointError if the
    checkpoint is damaged or of another run.
    """
    saved = checkpoint.load(uri)
    if lacking := {"world_size", "classes", "identity", "quarantined"} - saved.state.keys():
        raise CheckpointError(f"{uri}: damaged: {checkpoint.STATE_NAME} lacks {', '.join(sorted(lacking))}; remove it")
    # Not part of the state: a run may go on with another number of workers, and the data set knows its classes.
    del saved.state["world_size"], saved.state["classes"]
    check_identity(uri, saved.state.pop("identity"), identity)
    return restore(saved, net, optimizers, average, loss_scale)


def newest_run(folder: str, is_wanted: Callable[[dict[str, Any]], bool]) -> str | None:
    """Returns the URI of the run below `folder` that was started last, of those with a wanted identity; None for none.

    is_wanted: called with the identity of each run (`TrainJob.identity`).
    """
    found: list[tuple[float, str]] = []
    for name in files.list_directories(folder):
        run = files.join(folder, name)
        place = files.join(run, CONFIG_NAME)
        if files.exists(place) and is_wanted(files.read_json(place)):
            starts = read_starts(run)
            found.append((starts[-1]["time"] if starts else 0.0, run))
    return max(found, default=(0.0, None))[1]


def note_start(job: TrainJob, rank: int, world_size: int, step: int) -> str:
    """Records that the run starts, or starts again, at a step, and by which command. All ranks together.

    Returns a token that the ranks of this start share with no other start.
    """
    tokens, nodes = zip(*gather_objects((uuid.uuid4().hex[:8], _node()), world_size), strict=True)
    if rank == 0:
        now = time.time()
        values = {"time": now, "step": step, "world_size": world_size, "nodes": nodes, "command": job.command}
        values |= {name: True for name in _NUMERICS if getattr(job, name)}
        files.write_json(files.join(job.run, STARTS, f"{int(1000 * now)}.json"), values)
    return tokens[0]


def numerics(run: str, step: int) -> dict[str, bool]:
    """Returns {"compile", "deterministic", "fsdp"}: how the steps after `step` were computed (`TrainJob`)."""
    started = [start for start in read_starts(run) if start["step"] <= step]
    return {name: bool(started and started[-1].get(name)) for name in _NUMERICS}


def _node() -> str:
    """Returns the ID of this process's Ray node, or the machine's name where Ray doesn't run."""
    if not ray_is_initialized():
        return socket.gethostname()
    import ray

    return str(ray.get_runtime_context().get_node_id())


def read_starts(run: str) -> list[dict[str, Any]]:
    """Returns time (seconds since the epoch), step, world_size, nodes of the ranks and command of each start in order.

    Starts of earlier versions have no command. "compile", "deterministic" and "fsdp" are there where they are true.
    """
    folder = files.join(run, STARTS)
    names = sorted(name for name, _ in files.list_files(folder))
    return [_read_start(files.join(folder, name)) for name in names]


class _Start(msgspec.Struct):
    time: float
    step: int
    world_size: int
    nodes: list[str] = []
    command: str = ""


def _read_start(uri: str) -> dict[str, Any]:
    values: dict[str, Any] = files.read_json(uri)
    files.as_record(values, uri, _Start, "remove it: it says only when and how the run was started")
    return values
