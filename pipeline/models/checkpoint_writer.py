"""Writing checkpoints in the background, from all ranks, while training continues.

A checkpoint becomes visible last: `latest.json` points at it after every rank's part is stored
(`pipeline/models/checkpoint.py` describes the files). A save waits only for the save before it.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch

from pipeline.core.errors import PipelineError, StorageError
from pipeline.models.checkpoint import BEST_NAME, LATEST_NAME, SALVAGE_NAME, STATE_NAME, best, folder, latest, steps
from pipeline.models.device.sharding import is_sharded, whole
from pipeline.models.tensor_file import Tensors, serialize_tensors
from pipeline.storage import files

NUM_KEPT = 2  # newest checkpoints that are kept, besides the best one
_FORMAT = 1
_PART_TIMEOUT_SECONDS = 600
_POLL_SECONDS = 0.05
_MAX_FAILURES = 3


class CheckpointWriter:
    """Writes one rank's parts of a run's checkpoints in a background thread.

    token: equal on all ranks of one start and unlike any other start's. It is part of the file names, so that a part
    left by an earlier start is never taken for one of this start.
    warn: called with one line for each checkpoint that failed. The run continues until three in a row have failed.
    """

    def __init__(
        self, run: str, rank: int = 0, world_size: int = 1, token: str = "", warn: Callable[[str], None] = print
    ) -> None:
        self._run, self._rank, self._world_size = run, rank, world_size
        self._token, self._warn = token or uuid.uuid4().hex[:8], warn
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._num_failures = 0
        self._pinned: Tensors = {}
        self.written_bytes, self.written_seconds = 0, 0.0

    def save(
        self,
        step: int,
        tensors: Tensors,
        state: dict[str, Any],
        score: float | None = None,
        is_rank_local: Callable[[str], bool] = lambda name: False,
        alone: bool = False,
    ) -> None:
        """Copies this rank's share of the tensors to the CPU, starts writing it, and returns.

        state: JSON values; rank 0's are written. score: of the evaluation after this step, higher is better.
        is_rank_local: whether a tensor, given by its name, differs between ranks; rank 0 writes those. alone: this rank
        writes all tensors, because the others may be gone; none of them may be spread over ranks. Tensors that are come
        whole into the file; then all ranks together. Raises StorageError if three checkpoints in a row failed.
        """
        self.wait()
        world_size, rank = (1, 0) if alone else (self._world_size, self._rank)
        mine = assign_tensors(tensors, world_size, rank, is_rank_local)
        copies = self._copy_to_cpu({name: each for name, each in mine.items() if not is_sharded(each)})
        copies |= _gathered(tensors, mine)
        parts = [f"part-{number}-of-{world_size}-{self._token}.safetensors" for number in range(world_size)]
        meta = {"format": _FORMAT, "step": step, "parts": parts, "score": score, "written": time.time(), "state": state}
        self._start("write-checkpoint", self._write, step, copies, parts, rank, json.dumps(meta).encode())

    def salvage(self, step: int, weights: Tensors) -> None:
        """Starts writing the weights alone, for lack of time to write a checkpoint.

        This run can't continue from them; another run can begin with them (`--pretrained`).
        """
        self.wait()
        self._start("write-weights", self._write_weights, step, self._copy_to_cpu(weights))

    def wait(self) -> None:
        """Waits until the last checkpoint is written. Raises StorageError if three in a row have failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is None:
            self._num_failures = 0
            return
        if not isinstance(error, OSError | PipelineError):
            raise error
        self._num_failures += 1
        self._warn(f"a checkpoint couldn't be written ({error}); training goes on")
        if self._num_failures >= _MAX_FAILURES:
            raise StorageError(
                f"{self._run}: {self._num_failures} checkpoints in a row couldn't be written ({error}); free some "
                "space or repair the storage, and run the same command again"
            ) from error

    def seconds_for(self, num_bytes: int) -> float | None:
        """Returns the time to write `num_bytes` at the rate measured so far, or None before the first write."""
        return num_bytes * self.written_seconds / self.written_bytes if self.written_bytes else None

    def _start(self, thread_name: str, write: Callable[..., None], *args: Any) -> None:
        def catching() -> None:
            try:
                write(*args)
            except BaseException as error:  # `wait` raises it, or warns, in the training thread
                self._error = error

        self._thread = threading.Thread(target=catching, daemon=True, name=thread_name)
        self._thread.start()

    def _copy_to_cpu(self, tensors: Tensors) -> Tensors:
        copies: Tensors = {}
        for name, tensor in tensors.items():
            if tensor.is_cuda:
                # Pinned memory, kept from save to save: copies run asynchronously, and allocating it is slow.
                same = self._pinned.get(name)
                if same is None or same.shape != tensor.shape or same.dtype != tensor.dtype:
                    self._pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name] = self._pinned[name]
                copies[name].copy_(tensor.detach(), non_blocking=True)
            else:
                copies[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()  # the next step changes the weights
        return copies

    def _write(self, step: int, tensors: Tensors, parts: list[str], rank: int, meta: bytes) -> None:
        uri, start = folder(self._run, step), time.perf_counter()
        data = serialize_tensors(tensors)
        files.write_bytes(files.join(uri, parts[rank]), data)
        self.written_bytes += len(data)
        self.written_seconds += time.perf_counter() - start
        if rank == 0:
            self._publish(step, uri, parts, meta)

    def _write_weights(self, step: int, weights: Tensors) -> None:
        files.write_bytes(files.join(self._run, SALVAGE_NAME), serialize_tensors(weights, step=str(step)))

    def _publish(self, step: int, uri: str, parts: list[str], meta: bytes) -> None:
        """Waits for the parts of all ranks, then writes `state.json` and moves the pointers."""
        deadline = time.monotonic() + _PART_TIMEOUT_SECONDS
        for name in parts:
            while not files.exists(files.join(uri, name)):
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{uri}/{name}: another worker's part didn't arrive within {_PART_TIMEOUT_SECONDS} s"
                    )
                time.sleep(_POLL_SECONDS)
        files.write_bytes(files.join(uri, STATE_NAME), meta)
        score = json.loads(meta)["score"]
        _move_pointer(self._run, LATEST_NAME, {"step": step, "score": score}, lambda old: step > old["step"])
        if score is not None:
            _move_pointer(self._run, BEST_NAME, {"step": step, "score": score}, lambda old: score > old["score"])
        prune(self._run)


def _gathered(tensors: Tensors, mine: Tensors) -> Tensors:
    """Returns those of this rank's tensors that are spread over ranks, whole and on the CPU. All ranks together."""
    copies: Tensors = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):  # one after the other: the device holds one of them whole
            gathered = whole(tensor)
            if name in mine:
                copies[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return copies


def assign_tensors(tensors: Tensors, world_size: int, rank: int, is_rank_local: Callable[[str], bool]) -> Tensors:
    """Returns the tensors that `rank` writes.

    Replicated tensors are spread over the ranks, the largest first, each to the rank with the fewest bytes so far.
    Tensors that differ between ranks (`is_rank_local`) go to rank 0.
    """
    sizes = [0] * world_size
    assigned: Tensors = {}
    order = sorted(tensors.items(), key=lambda item: (-item[1].numel() * item[1].element_size(), item[0]))
    for name, tensor in order:
        owner = 0 if is_rank_local(name) else sizes.index(min(sizes))
        sizes[owner] += tensor.numel() * tensor.element_size()
        if owner == rank:
            assigned[name] = tensor
    return assigned


def record_score(run: str, step: int, score: float) -> None:
    """Records the score of a checkpoint that was written before its evaluation ended; higher is better."""
    if files.exists(files.join(folder(run, step), STATE_NAME)):
        _move_pointer(run, BEST_NAME, {"step": step, "score": score}, lambda old: score > old["score"])
        prune(run)


def prune(run: str) -> None:
    """Removes old checkpoints. The NUM_KEPT newest complete ones, the best, and any newer than `latest.json` stay."""
    newest = latest(run)
    if newest is None:
        return
    # A checkpoint beyond the newest complete one may be one that another process is writing.
    done = [step for step in steps(run) if folder(run, step) <= newest]
    kept = {folder(run, step) for step in done[-NUM_KEPT:]} | {best(run)}
    for step in done:
        if folder(run, step) not in kept:
            files.delete_tree(folder(run, step))


def _move_pointer(run: str, name: str, values: dict[str, Any], replaces: Callable[[dict[str, Any]], bool]) -> None:
    """Points `name` at a checkpoint, by compare-and-swap, unless it points at a better one.

    A node that was cut off may return and publish late; it mustn't move a pointer back.
    """
    pointer, data = files.join(run, name), json.dumps(values).encode()
    while not files.write_once(pointer, data):
        found = files.read_version(pointer)
        if found is None:
            continue
        if not replaces(json.loads(found[0])) or files.replace(pointer, data, found[1]):
            return
