"""Where the seconds go: by stage, in the tasks that make batches and in the loop that trains on them.

The loop's seconds add up to its time on the wall. A second of waiting for a batch whose task had not begun is queue,
for one that was already made hand-over; a second in between is blamed on storage, decode and augment, in the proportion
in which this batch's making took them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MAKING = ("storage", "decode", "augment")
WAITING = ("queue", *MAKING, "hand-over")
TRAINING = (*WAITING, "copy", "compute", "checkpoint", "other")
STAGES = ("start", *TRAINING, "evaluate")
MEANINGS = {
    "start": "until the first step: loading, and timing where a recipe asks for it",
    "queue": "waiting for a batch whose task had not begun: processes start, or no CPU was free",
    "storage": "waiting for a batch whose images were read and checked",
    "decode": "waiting for a batch whose images were decoded, cropped and resized",
    "augment": "waiting for a batch whose images were augmented",
    "hand-over": "waiting for a batch on its way from the task that made it",
    "copy": "batches to the device",
    "compute": "forward, backward, the optimiser's step, and the other workers'",
    "checkpoint": "writing checkpoints",
    "other": "between the steps",
    "evaluate": "the validation split, reading it included",
}


@dataclass(frozen=True)
class Making:
    """How a task made one batch: seconds of each stage of MAKING; started, ended: by its clock, since the epoch."""

    storage: float
    decode: float
    augment: float
    started: float
    ended: float

    def share(self, asked: float, arrived: float) -> dict[str, float]:
        """Returns whose the seconds of waiting from `asked` to `arrived` (since the epoch) are; they add up to that.

        Clocks of different nodes may differ by milliseconds, which moves as much between queue, hand-over and the rest.
        """
        arrived = max(asked, arrived)
        began, ended = (min(max(asked, when), arrived) for when in (self.started, self.ended))
        parts = {name: getattr(self, name) for name in MAKING}
        total = sum(parts.values())
        making = {name: part / total * (ended - began) for name, part in parts.items()} if total > 0 else {}
        rest = (arrived - asked) - sum(making.values())
        return {"queue": began - asked, **making, "hand-over": rest - (began - asked)}


class Stopwatch:
    """Adds up seconds by stage while a task makes a batch."""

    def __init__(self) -> None:
        self._started = time.time()
        self._seconds = dict.fromkeys(MAKING, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def making(self) -> Making:
        """What was measured so far, ending now."""
        return Making(**self._seconds, started=self._started, ended=time.time())


def training_seconds(seconds: dict[str, float]) -> float:
    """Sum of the stages of the training loop, without start and evaluations."""
    return sum(seconds.get(name, 0.0) for name in TRAINING)


def waiting_seconds(seconds: dict[str, float]) -> float:
    """Sum of the stages that are waiting for data."""
    return sum(seconds.get(name, 0.0) for name in WAITING)


def remark(seconds: dict[str, float]) -> str:
    """Returns the three largest shares of the training loop's time, as in "compute 88%, decode 9%, storage 2%"."""
    total = training_seconds(seconds) or 1.0
    shares = sorted(((seconds.get(name, 0.0) / total, name) for name in TRAINING), reverse=True)[:3]
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)
