"""Measures a training loop: the seconds of each stage, the loss of each step, images per second."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.loader.batch import Batch
from pipeline.loader.stage_times import STAGES, training_seconds, waiting_seconds

_Mark = Any  # a time in seconds, or a CUDA event


@dataclass
class _Piece:
    """A piece of a loop's time: until a line of the history ends, or since then."""

    spans: list[tuple[dict[str, float], _Mark, _Mark]] = field(default_factory=list)
    """Shares of the stages, start and end of each span that isn't added up yet."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """What is added up already, by stage, over all ranks."""
    step: int = 0
    """Steps of the run at its end."""
    learning_rate: float = 0.0
    """Of the last step."""


class Meter:
    """Divides the time of a training loop into stages, mark by mark, so that the stages add up to all of it.

    On a GPU the marks are events of its own timeline, so waiting means that the device was idle, not the host. Of
    several workers, the times are those of the one that waited longest for data: the others waited for it.

    Neither marks nor lines of the history that end wait for anything. `settle` reads what is over, and does so once for
    any number of lines.

    seconds: {stage: seconds} of the whole run, which `settle` adds to; losses: of each step, the mean over the global
    batch, NaN for a skipped step, which `count` adds to. start_seconds: what set-up took.
    """

    def __init__(
        self,
        seconds: dict[str, float],
        losses: list[float],
        device: torch.device,
        world_size: int,
        start_seconds: float,
    ) -> None:
        self._seconds, self._cuda, self._world_size = seconds, device.type == "cuda", world_size
        self._step_losses = losses
        self._device = device
        seconds["start"] = seconds.get("start", 0.0) + start_seconds
        self._last = self._now()
        self._open = _Piece()
        self._ended: deque[_Piece] = deque()
        self._counted: deque[tuple[int, float, int, bool]] = deque()  # step, loss, rows, skipped

    def _now(self) -> _Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def mark(self, stage: str) -> None:
        """Counts the time since the last mark as this stage's."""
        self._span({stage: 1.0})

    def _span(self, shares: dict[str, float]) -> None:
        now = self._now()
        self._open.spans.append((shares, self._last, now))
        self._last = now

    def next_batch(self, stream: Iterator[Batch]) -> Batch:
        """Returns the next batch, and divides the time spent waiting for it among the stages that produced it."""
        self.mark("other")
        asked = time.time()
        batch = next(stream)
        arrived = max(asked, time.time())
        # A resident batch is made when it is asked for, and that is cropping and flipping.
        shares = batch.timing.attribute(asked, arrived) if batch.timing else {"augment": 1.0}
        total = sum(shares.values())
        self._span({name: share / total for name, share in shares.items()} if total > 0 else {"hand-over": 1.0})
        return batch

    def count(self, step: int, loss_sum: float, global_rows: int, skipped: bool = False) -> None:
        """Notes the result of a step, in the order of steps: the sum of the sample losses of the global batch.

        skipped: the weights weren't updated; the step's time and rows count, its loss doesn't.
        """
        self._step_losses.append(math.nan if skipped else loss_sum / global_rows)
        self._counted.append((step, loss_sum, global_rows, skipped))

    def end_line(self, step: int, learning_rate: float) -> None:
        """Ends a line of the history after `step` steps of the run. learning_rate: of the last one."""
        self._open.step, self._open.learning_rate = step, learning_rate
        self._ended.append(self._open)
        self._open = _Piece()

    def has_line(self, step: int) -> bool:
        """Whether a line that ended after `step` steps of the run, or before, hasn't been returned."""
        return bool(self._ended) and self._ended[0].step <= step

    def settle(self, step: int | None = None) -> list[dict[str, Any]]:
        """Adds up the time of the lines that ended after `step` steps or before, and returns them. All ranks together.

        step: the same on all ranks, none of whose steps is still to be counted. None: all lines, and the time since the
        last of them.

        A line, of the steps since the line before, over all ranks: step, images, loss (mean over the images of steps
        that weren't skipped; None without any), learning_rate, images_per_second, data_wait (a share of the time),
        seconds (by stage).
        """
        lines = [piece for piece in self._ended if step is None or piece.step <= step]
        self._add_up([*lines, self._open] if step is None else lines)
        return [self._line(self._ended.popleft()) for _ in lines]

    def _line(self, piece: _Piece) -> dict[str, Any]:
        rows, loss, loss_rows = 0, 0.0, 0
        while self._counted and self._counted[0][0] < piece.step:
            _, loss_sum, global_rows, skipped = self._counted.popleft()
            rows += global_rows
            if not skipped:
                loss, loss_rows = loss + loss_sum, loss_rows + global_rows
        trained = training_seconds(piece.seconds)
        return {
            "step": piece.step,
            "images": rows,
            "loss": loss / loss_rows if loss_rows else None,
            "learning_rate": piece.learning_rate,
            "images_per_second": rows / trained,
            "data_wait": waiting_seconds(piece.seconds) / trained,
            "seconds": {name: round(value, 6) for name, value in piece.seconds.items() if value},
        }

    def _add_up(self, pieces: list[_Piece]) -> None:
        """Turns the spans of pieces into seconds, of the rank that waited longest, and adds them to the run's."""
        if not pieces:
            return
        table = self._gathered([self._local_seconds(piece) for piece in pieces])
        for number, piece in enumerate(pieces):
            by_rank = [dict(zip(STAGES, rank[number], strict=True)) for rank in table]
            for name, value in max(by_rank, key=waiting_seconds).items():
                self._seconds[name] = self._seconds.get(name, 0.0) + value
                piece.seconds[name] += value

    def _local_seconds(self, piece: _Piece) -> list[float]:
        """Returns this rank's seconds of each stage in the spans of a piece, and clears them."""
        local = dict.fromkeys(STAGES, 0.0)
        if self._cuda and piece.spans:
            piece.spans[-1][2].synchronize()  # it was passed long ago, unless all is asked for
        for shares, first, last in piece.spans:
            length = first.elapsed_time(last) / 1000 if self._cuda else last - first
            for name, share in shares.items():
                local[name] += share * length
        piece.spans.clear()
        return [*local.values()]

    def _gathered(self, seconds: list[list[float]]) -> list[list[list[float]]]:
        """Returns [world_size, pieces, stages]: the seconds of each rank. seconds: [pieces, stages]."""
        if self._world_size == 1:
            return [seconds]
        mine = torch.tensor(seconds, dtype=torch.float64, device=self._device)
        parts = [torch.empty_like(mine) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, mine)
        table: list[list[list[float]]] = torch.stack(parts).tolist()
        return table
