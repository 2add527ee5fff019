"""Measures a training loop: what each second went to, its loss, its speed; for its state, and as Ray's metrics."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.loader import Batch
from pipeline.order import Order
from pipeline.timing import STAGES, TRAINING, training_seconds, waiting_seconds

_Mark = Any  # a time in seconds, or a CUDA event


class Meter:
    """Cuts the time of a loop into stages, mark by mark, so that they add up to all of it.

    On a GPU the marks are events of its own timeline: waiting is what the device was idle for, not the host.
    seconds: by stage, of the whole run; grows at each `line`. Of several workers they are those of the one that
    waited longest for data: the others waited for it.
    """

    def __init__(self, seconds: dict[str, float], device: torch.device, world_size: int, start_seconds: float) -> None:
        self._seconds, self._cuda, self._world_size = seconds, device.type == "cuda", world_size
        self._device = device
        seconds["start"] = seconds.get("start", 0.0) + start_seconds
        self._last = self._mark()
        self._spans: list[tuple[dict[str, float], _Mark, _Mark]] = []
        self._losses: list[Tensor] = []
        self._rows = 0
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
        shares = batch.making.share(asked, arrived) if batch.making else {"augment": 1.0}
        total = sum(shares.values())
        self._span({name: share / total for name, share in shares.items()} if total > 0 else {"hand-over": 1.0})
        return batch

    def add(self, loss_sum: Tensor, global_rows: int) -> None:
        """Notes one step: the sum of this rank's losses, and the rows of the global batch."""
        self._losses.append(loss_sum)
        self._rows += global_rows

    def line(self, step: int, order: Order, learning_rate: float) -> dict[str, Any]:
        """Returns a line of the history, over all ranks. Raises RecipeError if the loss isn't finite.

        step, epoch, images (since the last line), loss, learning_rate, images_per_second, data_wait (a share), seconds
        (by stage).
        """
        loss, seconds = self._gather() / self._rows, self._since_line
        if not math.isfinite(loss):
            raise RecipeError(f"loss is {loss} at step {step}: training diverged; lower learning_rate")
        trained = training_seconds(seconds)
        line = {
            "step": step,
            "epoch": step / order.steps_per_epoch,
            "images": self._rows,
            "loss": loss,
            "learning_rate": learning_rate,
            "images_per_second": self._rows / trained,
            "data_wait": waiting_seconds(seconds) / trained,
            "seconds": {name: round(value, 6) for name, value in seconds.items() if value},
        }
        self._rows, self._losses, self._since_line = 0, [], dict.fromkeys(STAGES, 0.0)
        return line

    def settle(self) -> None:
        """Adds what was marked to the run's seconds. All ranks together."""
        self._gather()

    def _gather(self) -> float:
        """Returns the sum of the losses since the last line, over all ranks."""
        loss = torch.stack(self._losses).sum().double() if self._losses else torch.zeros((), dtype=torch.float64)
        if self._cuda:
            torch.cuda.synchronize()
        local = dict.fromkeys(STAGES, 0.0)
        for shares, first, last in self._spans:
            length = first.elapsed_time(last) / 1000 if self._cuda else last - first
            for name, share in shares.items():
                local[name] += share * length
        self._spans = []
        mine = torch.tensor([float(loss), *local.values()], dtype=torch.float64, device=self._device)
        everyone = [mine]
        if self._world_size > 1:
            everyone = [torch.empty_like(mine) for _ in range(self._world_size)]
            torch.distributed.all_gather(everyone, mine)
        table = torch.stack(everyone).cpu()
        each = [dict(zip(STAGES, line[1:].tolist(), strict=True)) for line in table]
        chosen = max(each, key=waiting_seconds)
        for name, value in chosen.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
            self._since_line[name] += value
        return float(table[:, 0].sum())


class RayMetrics:
    """The same for Prometheus, by Ray: counters of images and seconds; gauges of loss, speed and rows left out.

    Their names begin with ray_image_pipeline_; the tag `run` is the run's name. Does nothing where Ray doesn't run.
    """

    def __init__(self, run: str) -> None:
        import ray
        from ray.util.metrics import Counter, Gauge

        self._on = ray.is_initialized()
        if not self._on:
            return

        self._tags = {"run": run}
        keys = ("run",)
        self._seconds = Counter("image_pipeline_seconds", "of the training loop, by stage", ("run", "stage"))
        self._images = Counter("image_pipeline_images", "trained on", keys)
        self._quarantined = Gauge("image_pipeline_quarantined_rows", "left out, corrupt", keys)
        self._loss = Gauge("image_pipeline_loss", "of training, since the last report", keys)
        self._speed = Gauge("image_pipeline_images_per_second", "since the last report", keys)

    def report(self, line: dict[str, Any], quarantined: int) -> None:
        """Adds a line of the history. quarantined: rows left out so far."""
        if not self._on:
            return
        for name in TRAINING:
            if line["seconds"].get(name, 0.0) > 0:
                self._seconds.inc(line["seconds"][name], {**self._tags, "stage": name})
        self._images.inc(line["images"], self._tags)
        self._quarantined.set(quarantined, self._tags)
        self._loss.set(line["loss"], self._tags)
        self._speed.set(line["images_per_second"], self._tags)
