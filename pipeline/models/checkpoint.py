"""Checkpoints: written beside training by all ranks, whole or not there, and nothing in them is code.

Below a run lie `checkpoints/STEP/`, a part of each rank (safetensors) and `state.json`, then `latest.json` and
`best.json`, which name one each. A checkpoint exists once `latest.json` has named it, and that happens last: after
every part lies there. Steps go on meanwhile; a save waits only for the one before it.
"""

import json
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from pipeline.core.errors import CheckpointError, PipelineError, StorageError
from pipeline.storage import files

Tensors = dict[str, Tensor]
KEPT = 2  # the newest ones, besides the best
LATEST_NAME, BEST_NAME, STATE_NAME, FOLDER = "latest.json", "best.json", "state.json", "checkpoints"
MODEL_NAME, OUTPUT_NAME = "model.safetensors", "model.json"  # what a finished run leaves
SALVAGE_NAME = "salvaged.safetensors"
_FORMAT = 1
_PART_SECONDS = 600  # how long the other ranks' parts are waited for
_MOST_FAILURES = 3


def folder(run: str, step: int) -> str:
    """The URI of the checkpoint after `step` steps."""
    return files.join(run, FOLDER, f"{step:09d}")


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded. state: plain JSON; tensors: by name, on the CPU."""

    uri: str
    step: int
    state: dict[str, Any]
    tensors: Tensors


# --- reading -----------------------------------------------------------------------------------------------------


def latest(run: str) -> str | None:
    """Returns the URI of the newest checkpoint of a run, or None."""
    return _named(run, LATEST_NAME)


def best(run: str) -> str | None:
    """Returns the URI of the checkpoint of a run with the highest score, or None."""
    return _named(run, BEST_NAME)


def _named(run: str, pointer: str) -> str | None:
    place = files.join(run, pointer)
    if not files.exists(place):
        return None
    return folder(run, int(_json(place)["step"]))


def read_state(uri: str) -> dict[str, Any]:
    """Returns the `state.json` of the checkpoint at `uri`. Raises CheckpointError if it is damaged or gone."""
    return _json(files.join(uri, STATE_NAME))


def load(uri: str) -> Checkpoint:
    """Returns the checkpoint at `uri`. Raises CheckpointError if it is damaged or not whole."""
    meta = read_state(uri)
    tensors: Tensors = {}
    for name in meta["parts"]:
        tensors |= read_tensors(files.join(uri, name))
    return Checkpoint(uri, meta["step"], meta["state"], tensors)


def read_tensors(place: str) -> Tensors:
    """Returns the tensors of a safetensors file, whose bytes are checked where the file says what they were."""
    if not files.exists(place):
        raise CheckpointError(f"{place}: no such file; the checkpoint isn't whole")
    data = files.read_bytes(place)
    try:
        tensors: Tensors = read_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # safetensors raises an error of its own, which isn't public
        raise CheckpointError(f"{place}: damaged or not safetensors ({str(error)[:120]}); remove it") from error
    expected = header.get("__metadata__", {}).get("crc32")
    if expected is not None and int(expected) != _crc32(tensors):
        raise CheckpointError(f"{place}: its bytes have changed (CRC-32); remove it")
    return tensors


def _json(place: str) -> dict[str, Any]:
    if not files.exists(place):
        raise CheckpointError(f"{place}: no such checkpoint")
    try:
        values: dict[str, Any] = files.read_json(place)
    except ValueError as error:
        raise CheckpointError(f"{place}: damaged ({error}); remove it") from error
    return values


def differences(theirs: dict[str, Any], mine: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yields "FIELD was X, now Y" for each value that differs between two nested dictionaries."""
    for key in sorted({*theirs, *mine}):
        old, new = theirs.get(key), mine.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} was {old}, now {new}"


def check_same(
    where: str, theirs: dict[str, Any], mine: dict[str, Any], flags: str = "--run-dir or --run-name"
) -> None:
    """Raises CheckpointError, with what differs, unless both identities are the same. flags: that say where."""
    different = list(differences(theirs, mine))
    if different:
        raise CheckpointError(
            f"{where}: holds another run ({'; '.join(different[:4])}); give another {flags}, "
            "or the same settings to continue it"
        )


# --- writing -----------------------------------------------------------------------------------------------------


def _crc32(tensors: Tensors) -> int:
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(tensor.view(torch.uint8).numpy().data, crc) if tensor.numel() else crc
    return crc


def tensors_bytes(tensors: Tensors, **metadata: str) -> bytes:
    """Returns a safetensors file of CPU tensors, with the CRC-32 of their bytes."""
    return safetensors_bytes(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {**metadata, "crc32": str(_crc32(tensors))}
    )


def share_out(tensors: Tensors, world_size: int, rank: int, of_rank_0: Callable[[str], bool]) -> Tensors:
    """Returns the tensors that `rank` writes: replicated ones dealt out by size; `of_rank_0` says which only it has."""
    sizes = [0] * world_size
    mine: Tensors = {}
    order = sorted(tensors.items(), key=lambda item: (-item[1].numel() * item[1].element_size(), item[0]))
    for name, tensor in order:
        owner = 0 if of_rank_0(name) else sizes.index(min(sizes))
        sizes[owner] += tensor.numel() * tensor.element_size()
        if owner == rank:
            mine[name] = tensor
    return mine


class Writer:
    """Writes one rank's parts of a run's checkpoints in a thread of its own.

    token: the same on all ranks of one start, and of no other: no part is taken for another start's.
    warn: called with a line for each checkpoint that failed; the run goes on, until three in a row have.
    """

    def __init__(
        self, run: str, rank: int = 0, world_size: int = 1, token: str = "", warn: Callable[[str], None] = print
    ) -> None:
        self._run, self._rank, self._world_size = run, rank, world_size
        self._token, self._warn = token or uuid.uuid4().hex[:8], warn
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failures = 0
        self._pinned: Tensors = {}
        self.written_bytes, self.written_seconds = 0, 0.0

    def save(
        self,
        step: int,
        tensors: Tensors,
        state: dict[str, Any],
        score: float | None = None,
        of_rank_0: Callable[[str], bool] = lambda name: False,
        alone: bool = False,
    ) -> None:
        """Copies the tensors to the CPU and returns; they are written later. state: JSON, of rank 0.

        score: of the evaluation just done, higher is better. alone: by this rank only, all tensors. Raises StorageError
        if several checkpoints in a row couldn't be written.
        """
        self.wait()
        world_size, rank = (1, 0) if alone else (self._world_size, self._rank)
        copies = self._copied(share_out(tensors, world_size, rank, of_rank_0))
        parts = [f"part-{number}-of-{world_size}-{self._token}.safetensors" for number in range(world_size)]
        meta = {"format": _FORMAT, "step": step, "parts": parts, "score": score, "written": time.time(), "state": state}
        work = (step, copies, parts, rank, json.dumps(meta).encode())
        self._thread = threading.Thread(target=self._write, args=work, daemon=True, name="write-checkpoint")
        self._thread.start()

    def salvage(self, step: int, weights: Tensors) -> None:
        """Begins to write weights alone, for a person to begin another run with: this one can't go on from them."""
        self.wait()
        work = (step, self._copied(weights))
        self._thread = threading.Thread(target=self._write_weights, args=work, daemon=True, name="write-weights")
        self._thread.start()

    def _write_weights(self, step: int, weights: Tensors) -> None:
        try:
            files.write_bytes(files.join(self._run, SALVAGE_NAME), tensors_bytes(weights, step=str(step)))
        except BaseException as error:  # raised, or said, by the one who waits
            self._error = error

    def wait(self) -> None:
        """Returns when the last checkpoint is written. Raises StorageError if too many have failed in a row."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is None:
            self._failures = 0
            return
        if not isinstance(error, OSError | PipelineError):
            raise error
        self._failures += 1
        self._warn(f"a checkpoint couldn't be written ({error}); training goes on")
        if self._failures >= _MOST_FAILURES:
            raise StorageError(
                f"{self._run}: {self._failures} checkpoints in a row couldn't be written ({error}); make room or mend "
                "the storage, and give the same command again"
            ) from error

    def seconds_for(self, num_bytes: int) -> float | None:
        """Returns how long so many bytes take at the rate measured so far, or None where nothing was written yet."""
        return num_bytes * self.written_seconds / self.written_bytes if self.written_bytes else None

    def _copied(self, tensors: Tensors) -> Tensors:
        copies: Tensors = {}
        for name, tensor in tensors.items():
            if tensor.is_cuda:
                same = self._pinned.get(name)
                if same is None or same.shape != tensor.shape or same.dtype != tensor.dtype:
                    self._pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name] = self._pinned[name]
                copies[name].copy_(tensor.detach(), non_blocking=True)
            else:
                copies[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _write(self, step: int, tensors: Tensors, parts: list[str], rank: int, meta: bytes) -> None:
        try:
            place, start = folder(self._run, step), time.perf_counter()
            data = tensors_bytes(tensors)
            files.write_bytes(files.join(place, parts[rank]), data)
            self.written_bytes += len(data)
            self.written_seconds += time.perf_counter() - start
            if rank == 0:
                self._publish(step, place, parts, meta)
        except BaseException as error:  # raised, or said, by the one who waits
            self._error = error

    def _publish(self, step: int, place: str, parts: list[str], meta: bytes) -> None:
        deadline = time.monotonic() + _PART_SECONDS
        for name in parts:
            while not files.exists(files.join(place, name)):
                if time.monotonic() > deadline:
                    raise StorageError(f"{place}/{name}: another worker's part didn't come in {_PART_SECONDS} s")
                time.sleep(0.05)
        files.write_bytes(files.join(place, STATE_NAME), meta)
        score = json.loads(meta)["score"]
        _point(self._run, LATEST_NAME, {"step": step, "score": score}, lambda old: step > old["step"])
        if score is not None:
            _point(self._run, BEST_NAME, {"step": step, "score": score}, lambda old: score > old["score"])
        prune(self._run)


def _point(run: str, name: str, values: dict[str, Any], replaces: Callable[[dict[str, Any]], bool]) -> None:
    """Has a pointer name a checkpoint, unless it names a better one: also if a cut-off node comes back late."""
    place, data = files.join(run, name), json.dumps(values).encode()
    while not files.write_once(place, data):
        found = files.read_version(place)
        if found is None:
            continue
        if not replaces(json.loads(found[0])) or files.replace(place, data, found[1]):
            return


def note_score(run: str, step: int, value: float) -> None:
    """Notes what the checkpoint after `step` steps has reached, evaluated after it was written."""
    if files.exists(files.join(folder(run, step), STATE_NAME)):
        _point(run, BEST_NAME, {"step": step, "score": value}, lambda old: value > old["score"])
        prune(run)


def steps(run: str) -> list[int]:
    """Returns the steps of all checkpoints in a run, whole or not, rising."""
    return sorted(int(name) for name in files.list_directories(files.join(run, FOLDER)) if name.isdecimal())


def prune(run: str) -> None:
    """Removes all checkpoints but the KEPT newest that are whole, the best, and what may still be being written."""
    newest = latest(run)
    if newest is None:
        return
    done = [step for step in steps(run) if folder(run, step) <= newest]
    kept = {folder(run, step) for step in done[-KEPT:]} | {best(run)}
    for step in done:
        if folder(run, step) not in kept:
            files.delete_tree(folder(run, step))
