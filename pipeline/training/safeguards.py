"""What stops a run before it spoils itself: losses that aren't finite, and steps that never end."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.core.errors import DivergedError


class FiniteGuard:
    """Looks at each step's loss and gradient before anything is updated.

    most_skipped: steps that may be left out; 0 stops at the first. Ranks agree: gradients are the same on all of them,
    and where steps are left out, they ask one another about their losses.
    """

    def __init__(self, most_skipped: int, world_size: int, device: torch.device) -> None:
        self._most, self._world_size, self._device = most_skipped, world_size, device

    def may_update(self, loss: Tensor, norm: Tensor, step: int, skipped: list[int]) -> bool:
        """loss: this rank's sum; norm: of the gradient. Adds a step that is left out to `skipped`.

        Raises DivergedError if this rank's loss or the gradient isn't finite and too many steps are left out already.
        """
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        if self._most and self._world_size > 1:
            flag = finite.to(torch.float32)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
            finite = flag > 0
        if bool(finite):
            return True
        if len(skipped) >= self._most:
            raise DivergedError(f"step {step}: the loss is {float(loss)} and the gradient's norm {float(norm)}")
        skipped.append(step)
        return False


class Watchdog:
    """Ends this process if nobody says for too long that it is getting on: Ray then starts the workers again.

    A collective operation whose partner is gone, or a file system that never answers, hangs for ever otherwise.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds, self._say = seconds, say
        self._last, self._what = time.monotonic(), "start"
        self._ended = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, what: str) -> None:
        """Says that the process is getting on, and with what."""
        self._last, self._what = time.monotonic(), what

    def end(self) -> None:
        """Ends the watch."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            idle = time.monotonic() - self._last
            if idle > self._seconds:
                self._say(f"nothing has moved for {idle:.0f} s after {self._what}; this worker ends, and starts again")
                with contextlib.suppress(Exception):  # what can't be said doesn't keep it from ending
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
                os._exit(75)
