"""What a training worker has to tell a log collector: a line of JSON on its standard error for each event.

Ray keeps the standard error of its workers in files of each node, where collectors find it. Every line carries run,
rank and step, so that the lines of one run can be told from others'.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

Level = Literal["info", "warning", "error"]


class RunLog:
    """Writes the lines of one worker. tell: what takes a line; None for standard error."""

    def __init__(self, run: str, rank: int, world_size: int, tell: Callable[[str], None] | None = None) -> None:
        self._always = {"run": run, "rank": rank, "world_size": world_size}
        self._tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))

    def event(self, name: str, step: int, level: Level = "info", **values: Any) -> None:
        """Writes {"time": seconds since the epoch, "level", "event", "run", "rank", "world_size", "step", ...values}.

        Raises TypeError for a value that JSON doesn't know.
        """
        line = {"time": round(time.time(), 3), "level": level, "event": name, **self._always, "step": step, **values}
        self._tell(json.dumps(line))


def silent_log() -> RunLog:
    """Returns a log that nobody reads, for training in a terminal's own process."""
    return RunLog("", 0, 1, lambda line: None)
