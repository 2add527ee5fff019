"""Checkpoints: one file each, so that there is a whole one or none. Loading one never runs code."""

import io
from typing import Any

import torch

from pipeline import storage
from pipeline.errors import CheckpointError

_PREFIX = "checkpoint-"
STATE_NAME = "state.pt"
KEPT = 2


def name(step: int) -> str:
    """The directory of the checkpoint after `step` steps."""
    return f"{_PREFIX}{step:09d}"


def save(run: str, step: int, state: dict[str, Any]) -> str:
    """Writes the state (tensors, numbers, strings and containers) and returns the checkpoint's URI."""
    uri = storage.join(run, name(step))
    storage.write_bytes(storage.join(uri, STATE_NAME), dump(state))
    return uri


def dump(state: dict[str, Any]) -> bytes:
    """Returns the state in torch's file format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load(uri: str, state_name: str = STATE_NAME) -> dict[str, Any]:
    """Returns the state of the checkpoint at `uri`, tensors on the CPU. Raises CheckpointError if it is damaged."""
    place = storage.join(uri, state_name)
    if not storage.exists(place):
        raise CheckpointError(f"{place}: no such checkpoint")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(storage.read_bytes(place)), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever it meets: RuntimeError, UnpicklingError, EOFError ...
        raise CheckpointError(f"{place}: damaged or not a checkpoint ({str(error)[:120]}); remove it") from error
    return state


def all_steps(run: str) -> list[int]:
    """Returns the steps of the checkpoints in a run, rising; a directory without its file doesn't count."""
    found = [entry for entry in storage.list_directories(run) if entry.startswith(_PREFIX)]
    steps = [int(entry.removeprefix(_PREFIX)) for entry in found]
    return sorted(step for step in steps if storage.exists(storage.join(run, name(step), STATE_NAME)))


def latest(run: str) -> str | None:
    """Returns the URI of the newest checkpoint of a run, or None."""
    steps = all_steps(run)
    return storage.join(run, name(steps[-1])) if steps else None


def prune(run: str) -> None:
    """Removes all but the newest KEPT checkpoints."""
    for step in all_steps(run)[:-KEPT]:
        storage.delete_tree(storage.join(run, name(step)))
