"""Checkpoints of a run: the layout of their files, and reading them.

RUN/checkpoints/STEP/ holds one safetensors file of each rank (a part) and `state.json`. RUN/latest.json and
RUN/best.json are pointers, each to one step. A checkpoint counts as written once `latest.json` has pointed at it, which
happens after all its parts are stored. Nothing in a checkpoint is code. `pipeline/models/checkpoint_writer.py` writes
them.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from pipeline.core.errors import CheckpointError, DamagedError
from pipeline.models.tensor_file import Tensors, read_tensors
from pipeline.storage import files

LATEST_NAME, BEST_NAME, STATE_NAME, FOLDER = "latest.json", "best.json", "state.json", "checkpoints"
MODEL_NAME, OUTPUT_NAME = "model.safetensors", "model.json"  # of a finished run
SALVAGE_NAME = "salvaged.safetensors"  # weights alone, saved when a node was about to be taken away


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    uri: its folder. step: number of finished steps. state: plain JSON, without the tensors. tensors: by name, on the
    CPU.
    """

    uri: str
    step: int
    state: dict[str, Any]
    tensors: Tensors


def folder(run: str, step: int) -> str:
    """Returns the URI of the checkpoint after `step` steps."""
    return files.join(run, FOLDER, f"{step:09d}")


def is_checkpoint(uri: str) -> bool:
    """Whether a URI names one checkpoint of a run rather than a run."""
    return f"/{FOLDER}/" in uri


def latest(run: str) -> str | None:
    """Returns the URI of the newest complete checkpoint of a run, or None."""
    return _pointed_at(run, LATEST_NAME)


def best(run: str) -> str | None:
    """Returns the URI of the checkpoint with the highest score, or None."""
    return _pointed_at(run, BEST_NAME)


def steps(run: str) -> list[int]:
    """Returns the steps of all checkpoints in a run, complete or not, in ascending order."""
    return sorted(int(name) for name in files.list_directories(files.join(run, FOLDER)) if name.isdecimal())


class _StateFile(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0)]
    parts: list[Annotated[str, msgspec.Meta(pattern=r"^[^/]+$")]]
    state: dict[str, Any]


class Output(msgspec.Struct):
    """What a finished run says of its model, as far as others read it."""

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    dataset_digest: str
    hold_out: float


def read_state(uri: str) -> dict[str, Any]:
    """Returns the content of the `state.json` of the checkpoint at `uri`: step, parts, score and state.

    Raises CheckpointError if the file is missing or damaged.
    """
    return _read_json(files.join(uri, STATE_NAME), _StateFile)


def read_output(run: str) -> Output:
    """Returns what the `model.json` of a finished run says. Raises CheckpointError if it is missing or damaged."""
    return msgspec.convert(_read_json(files.join(run, OUTPUT_NAME), Output, "give another run"), Output)


def load(uri: str) -> Checkpoint:
    """Returns the checkpoint at `uri`. Raises CheckpointError if it is damaged or incomplete."""
    meta = read_state(uri)
    tensors: Tensors = {}
    for name in meta["parts"]:
        tensors |= read_tensors(files.join(uri, name))
    return Checkpoint(uri, meta["step"], meta["state"], tensors)


def _pointed_at(run: str, pointer_name: str) -> str | None:
    pointer = files.join(run, pointer_name)
    if not files.exists(pointer):
        return None
    return folder(run, _read_json(pointer, _Pointer)["step"])


class _Pointer(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0)]


def _read_json(uri: str, form: type[msgspec.Struct], remedy: str = "remove it") -> dict[str, Any]:
    """Returns the content of a JSON file with the fields of `form`, and those that it has besides."""
    try:
        values: dict[str, Any] = files.read_json(uri)
        files.as_record(values, uri, form, remedy)
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri}: no such checkpoint; give a folder below RUN/checkpoints/, or RUN") from error
    except DamagedError as error:
        raise CheckpointError(f"{uri}: damaged ({error.__cause__ or error}); {remedy}") from error
    return values
