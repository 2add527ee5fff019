"""The log of a training worker for log collectors: a line of JSON on standard error for each event.

Ray keeps the standard error of its workers in files on each node, where collectors find them. Every line carries run,
rank and step, so that the lines of one run can be told from those of others.
"""

import json
import logging
import sys
from typing import Any, Literal

Level = Literal["info", "warning", "error"]
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time in seconds since the epoch, level, event, and then the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line. Raises TypeError for a value that JSON doesn't know."""
        fields: dict[str, Any] = record.__dict__["fields"]
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.msg, **fields}
        return json.dumps(line)


class _StrictHandler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that `logging` calls
        """Raises the error: by default `logging` prints it and goes on, and the line is lost."""
        raise


class RunLog:
    """Writes the lines of one worker.

    handler: gets the records, None for standard error.
    """

    def __init__(self, run: str, rank: int, world_size: int, handler: logging.Handler | None = None) -> None:
        self._fields = {"run": run, "rank": rank, "world_size": world_size}
        handler = handler or _StrictHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        self._logger = logging.Logger("pipeline.run")  # known to nobody else: no handler of the host repeats its lines
        self._logger.addHandler(handler)

    def event(self, name: str, step: int, level: Level = "info", **values: Any) -> None:
        """Writes {"time": seconds since the epoch, "level", "event", "run", "rank", "world_size", "step", ...values}.

        Raises TypeError for a value that JSON doesn't know.
        """
        self._logger.log(_LEVELS[level], name, extra={"fields": {**self._fields, "step": step, **values}})


def silent_log() -> RunLog:
    """Returns a log that writes nothing, for training in a terminal's own process."""
    return RunLog("", 0, 1, logging.NullHandler())
