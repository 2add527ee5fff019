"""Measures a training loop: the seconds of each stage, the loss of each step, images per second."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.loader.stage_times import STAGES, training_seconds, waiting_seconds

_Mark = Any  # a time in seconds, or a CUDA event


class Meter:
    """Divides the time of a training loop into stages, mark by mark, so that the stages add up to all of it.

    On a GPU the marks are events of its own timeline, so waiting means that the device was idle, not the host. Of
    several workers, the times are those of the one that waited longest for data: the others waited for it.

    seconds: {stage: seconds} of the whole run, and losses: of each step, the mean over the global batch, NaN for a
    skipped step. `line` and `settle` add to both. start_seconds: what set-up took.
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
        self._spans: list[tuple[dict[str, float], _Mark, _Mark]] = []
        # One entry a step since the last gathering: on the device, so that a step doesn't wait for its loss.
        self._losses: list[Tensor] = []
        self._rows: list[int] = []
        self._skipped: list[bool] = []
        self._start_line()

    def _start_line(self) -> None:
        self._line_rows, self._line_loss, self._line_loss_rows = 0, 0.0, 0
        self._line_seconds = dict.fromkeys(STAGES, 0.0)

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
        self._spans.append((shares, self._last, now))
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

    def add(self, loss_sum: Tensor, global_rows: int, skipped: bool = False) -> None:
        """Notes one step: the sum of this rank's sample losses, and the rows of the global batch.

        skipped: the weights weren't updated; the step's time and rows count, its loss doesn't.
        """
        self._losses.append(loss_sum)
        self._rows.append(global_rows)
        self._skipped.append(skipped)

    def line(self, step: int, order: Order, learning_rate: float) -> dict[str, Any]:
        """Returns a line of the history: of the steps since the last line, over all ranks. All ranks together.

        step, epoch, images, loss (mean over the images of steps that weren't skipped; None without any), learning_rate,
        images_per_second, data_wait (a share of the time), seconds (by stage).
        """
        self.settle()
        rows, seconds = self._line_rows, self._line_seconds
        trained = training_seconds(seconds)
        line = {
            "step": step,
            "epoch": step / order.steps_per_epoch,
            "images": rows,
            "loss": self._line_loss / self._line_loss_rows if self._line_loss_rows else None,
            "learning_rate": learning_rate,
            "images_per_second": rows / trained,
            "data_wait": waiting_seconds(seconds) / trained,
            "seconds": {name: round(value, 6) for name, value in seconds.items() if value},
        }
        self._start_line()
        return line

    def settle(self) -> None:
        """Adds what was noted since the last time to the run's seconds and losses. All ranks together."""
        if self._cuda:
            torch.cuda.synchronize()
        local = dict.fromkeys(STAGES, 0.0)
        for shares, first, last in self._spans:
            length = first.elapsed_time(last) / 1000 if self._cuda else last - first
            for name, share in shares.items():
                local[name] += share * length
        self._spans = []
        table = self._gathered([*local.values()])
        by_rank = [dict(zip(STAGES, row[: len(STAGES)].tolist(), strict=True)) for row in table]
        for name, value in max(by_rank, key=waiting_seconds).items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
            self._line_seconds[name] += value
        loss_sums = table[:, len(STAGES) :].sum(0).tolist()
        for loss, rows, skipped in zip(loss_sums, self._rows, self._skipped, strict=True):
            self._step_losses.append(math.nan if skipped else loss / rows)
            self._line_rows += rows
            if not skipped:
                self._line_loss += loss
                self._line_loss_rows += rows
        self._losses, self._rows, self._skipped = [], [], []

    def _gathered(self, seconds: list[float]) -> Tensor:
        """Returns float64 [world_size, stages + steps]: seconds by stage and loss sums by step of each rank."""
        losses = torch.stack(self._losses).double() if self._losses else torch.zeros(0, dtype=torch.float64)
        mine = torch.cat([torch.tensor(seconds, dtype=torch.float64, device=self._device), losses.to(self._device)])
        if self._world_size == 1:
            return mine[None].cpu()
        parts = [torch.empty_like(mine) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, mine)
        return torch.stack(parts).cpu()
