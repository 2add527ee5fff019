"""Measures a training loop: what each second went to, its loss, its speed."""

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
    """Cuts the time of a loop into stages, mark by mark, so that they add up to all of it.

    On a GPU the marks are events of its own timeline: waiting is what the device was idle for, not the host.
    seconds: by stage, of the whole run, and losses: of each step, the mean over the global batch; both grow at each
    `line` and `settle`. Of several workers they are those of the one that
    waited longest for data: the others waited for it.
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
        self._last = self._mark()
        self._spans: list[tuple[dict[str, float], _Mark, _Mark]] = []
        self._losses: list[Tensor] = []
        self._rows: list[int] = []
        self._line_rows, self._line_loss = 0, 0.0
        self._since_line = dict.fromkeys(STAGES, 0.0)

    def _mark(self) -> _Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def until_now(self, stage: str) -> None:
        """The time since the last mark was this stage's."""
        self._span({stage: 1.0})

    def _span(self, shares: dict[str, float]) -> None:
        now = self._mark()
        self._spans.append((shares, self._last, now))
        self._last = now

    def next_batch(self, stream: Iterator[Batch]) -> Batch:
        """Returns the next batch; what waiting for it took is shared out among the stages that made it."""
        self.until_now("other")
        asked = time.time()
        batch = next(stream)
        arrived = max(asked, time.time())
        # A resident batch is made where it is asked for, and that is cropping and flipping.
        shares = batch.timing.attribute(asked, arrived) if batch.timing else {"augment": 1.0}
        total = sum(shares.values())
        self._span({name: share / total for name, share in shares.items()} if total > 0 else {"hand-over": 1.0})
        return batch

    def add(self, loss_sum: Tensor, global_rows: int) -> None:
        """Notes one step: the sum of this rank's losses, and the rows of the global batch."""
        self._losses.append(loss_sum)
        self._rows.append(global_rows)

    def line(self, step: int, order: Order, learning_rate: float) -> dict[str, Any]:
        """Returns a line of the history, over all ranks.

        step, epoch, images (since the last line), loss, learning_rate, images_per_second, data_wait (a share), seconds
        (by stage).
        """
        self._gather()
        rows, seconds = self._line_rows, self._since_line
        trained = training_seconds(seconds)
        line = {
            "step": step,
            "epoch": step / order.steps_per_epoch,
            "images": rows,
            "loss": self._line_loss / rows,
            "learning_rate": learning_rate,
            "images_per_second": rows / trained,
            "data_wait": waiting_seconds(seconds) / trained,
            "seconds": {name: round(value, 6) for name, value in seconds.items() if value},
        }
        self._line_rows, self._line_loss, self._since_line = 0, 0.0, dict.fromkeys(STAGES, 0.0)
        return line

    def settle(self) -> None:
        """Adds what was noted to the run's seconds and losses. All ranks together."""
        self._gather()

    def _gather(self) -> None:
        """Adds up what was noted since the last time, over all ranks."""
        if self._cuda:
            torch.cuda.synchronize()
        local = dict.fromkeys(STAGES, 0.0)
        for shares, first, last in self._spans:
            length = first.elapsed_time(last) / 1000 if self._cuda else last - first
            for name, share in shares.items():
                local[name] += share * length
        self._spans = []
        losses = torch.stack(self._losses).double() if self._losses else torch.zeros(0, dtype=torch.float64)
        seconds = torch.tensor([*local.values()], dtype=torch.float64, device=self._device)
        mine = torch.cat([seconds, losses.to(self._device)])
        everyone = [mine]
        if self._world_size > 1:
            everyone = [torch.empty_like(mine) for _ in range(self._world_size)]
            torch.distributed.all_gather(everyone, mine)
        table = torch.stack(everyone).cpu()
        each = [dict(zip(STAGES, line[: len(STAGES)].tolist(), strict=True)) for line in table]
        chosen = max(each, key=waiting_seconds)
        for name, value in chosen.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
            self._since_line[name] += value
        for loss, rows in zip(table[:, len(STAGES) :].sum(0).tolist(), self._rows, strict=True):
            self._step_losses.append(loss / rows)
            self._line_rows += rows
            self._line_loss += loss
        self._rows, self._losses = [], []
