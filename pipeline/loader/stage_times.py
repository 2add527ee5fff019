"""Time by stage, in the threads or tasks that make batches and in the loop that trains on them.

The loop's seconds add up to its wall time. A second that the loop waits for a batch counts as "queue" if the batch's
making had not started, and as "hand-over" if the batch was already made. A second in between is divided among
"storage", "decode" and "augment" in the proportion in which they made up the making of this batch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

TASK_STAGES = ("storage", "decode", "augment")
WAIT_STAGES = ("queue", *TASK_STAGES, "hand-over")
LOOP_STAGES = ("select", "features", *WAIT_STAGES, "copy", "compute", "checkpoint", "other")
STAGES = ("start", *LOOP_STAGES, "evaluate")
STAGE_MEANINGS = {
    "start": "until the first step: loading, and timing where a recipe asks for it",
    "select": "training the proxy that chooses images, before the first step",
    "features": "computing features and fitting the last layer to them, before the first step",
    "queue": "waiting for a batch whose making had not started: processes start, or no CPU was free",
    "storage": "waiting for a batch whose images were read and checked",
    "decode": "waiting for a batch whose images were decoded, cropped and resized",
    "augment": "waiting for a batch whose images were augmented",
    "hand-over": "waiting for a finished batch on its way to the loop",
    "copy": "batches to the device",
    "compute": "forward, backward, the optimiser's step, and waiting for the other workers in it",
    "checkpoint": "writing checkpoints",
    "other": "between the steps",
    "evaluate": "the validation split, reading included",
}


@dataclass(frozen=True)
class BatchTiming:
    """How long it took to make one batch.

    storage, decode, augment: seconds of each of TASK_STAGES. started, ended: seconds since 1970,
    by the clock of the node that made it.
    """

    storage: float
    decode: float
    augment: float
    started: float
    ended: float

    @staticmethod
    def together(parts: Sequence["BatchTiming"]) -> "BatchTiming":
        """Returns the timing of a batch whose parts were made by several threads: their seconds, added up."""
        seconds = {name: sum(getattr(part, name) for part in parts) for name in TASK_STAGES}
        started, ended = min(part.started for part in parts), max(part.ended for part in parts)
        return BatchTiming(**seconds, started=started, ended=ended)

    def attribute(self, asked: float, arrived: float) -> dict[str, float]:
        """Returns the seconds of each of WAIT_STAGES between `asked` and `arrived` (seconds since 1970); they add up.

        Clocks of different nodes may differ by milliseconds, which moves as much between queue, hand-over and the rest.
        """
        arrived = max(asked, arrived)
        began, ended = (min(max(asked, when), arrived) for when in (self.started, self.ended))
        parts = {name: getattr(self, name) for name in TASK_STAGES}
        total = sum(parts.values())
        making = {name: part / total * (ended - began) for name, part in parts.items()} if total > 0 else {}
        rest = (arrived - asked) - sum(making.values())
        return {"queue": began - asked, **making, "hand-over": rest - (began - asked)}


class Stopwatch:
    """Adds up seconds by stage while a task makes a batch."""

    def __init__(self) -> None:
        self._started = time.time()
        self._seconds = dict.fromkeys(TASK_STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to a stage."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def timing(self) -> BatchTiming:
        """Returns the seconds so far; the batch ends now."""
        return BatchTiming(**self._seconds, started=self._started, ended=time.time())


def training_seconds(seconds: dict[str, float]) -> float:
    """Returns the seconds of the training loop: all stages but start and evaluation."""
    return sum(seconds.get(name, 0.0) for name in LOOP_STAGES)


def waiting_seconds(seconds: dict[str, float]) -> float:
    """Returns the seconds that the training loop waited for data."""
    return sum(seconds.get(name, 0.0) for name in WAIT_STAGES)


def largest_shares(seconds: dict[str, float]) -> str:
    """Returns the three largest shares of the training loop's time, as in "compute 88%, decode 9%, storage 2%"."""
    total = training_seconds(seconds) or 1.0
    shares = sorted(((seconds.get(name, 0.0) / total, name) for name in LOOP_STAGES), reverse=True)[:3]
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)
