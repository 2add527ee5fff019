"""What rank 0 decides by its clock or a signal, told to all ranks with the results of their steps.

No rank asks another and waits: a request travels in the all-reduce that a step makes anyway, and all ranks follow it
when they read that step. So they stop and report after the same step.
"""

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What all ranks do after a step."""

    stop: bool = False
    """Save a checkpoint and leave."""
    report: bool = False
    """Gather the seconds of the last steps; show, track and log the lines of the history that have ended."""

    save: bool = False
    """Save a checkpoint: a node of the run is about to be taken away."""

    def __or__(self, other: "Request") -> "Request":
        """Returns both."""
        return Request(self.stop or other.stop, self.report or other.report, self.save or other.save)


class RankZero:
    """The requests of rank 0, as one rank knows them."""

    def __init__(self, world_size: int) -> None:
        self._alone = world_size == 1
        self._next = Request()
        self._told: deque[tuple[float, Request]] = deque()

    def request(self, request: Request) -> None:
        """Makes a request, on rank 0, between two steps. It goes to all ranks with the next one."""
        if self._alone:
            self._told.append((-math.inf, request))
        else:
            self._next |= request

    def outgoing(self) -> int:
        """Returns what goes with a step's results."""
        request, self._next = self._next, Request()
        return request.stop + 2 * request.report + 4 * request.save

    def receive(self, step: int, number: int) -> None:
        """Takes what came with the results of a step."""
        self._told.append((step, Request(bool(number & 1), bool(number & 2), bool(number & 4))))

    def due(self, up_to: int) -> Request:
        """Returns what was requested with the steps before step `up_to`, each request once."""
        request = Request()
        while self._told and self._told[0][0] < up_to:
            request |= self._told.popleft()[1]
        return request
