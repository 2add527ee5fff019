"""Progress of a long stage: the stage calls a function, and the caller decides how to show it."""

from typing import Protocol

ACTIVITY = "start"
"""Stage of what can't be counted: the remark says what is being done until the next report."""
MESSAGE = ""
"""Stage of a line that is to be kept, as after an evaluation."""


class Bytes(int):
    """A number of bytes done, or in all; shown in MB."""


class Progress(Protocol):
    """A function that is called from time to time with the progress of a stage.

    stage: its name. done, total: units of work (`Bytes` for bytes); total is 0 if it isn't known. remark: text to show
    beside them; without a number done and a total it is a line of its own, which is kept.
    """

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None: ...


def silent(stage: str, done: int, total: int, remark: str = "") -> None:
    """Shows nothing."""


def begin(progress: Progress, activity: str) -> None:
    """Reports what is being done now, and can't be counted: "starting Ray"."""
    progress(ACTIVITY, 0, 0, activity)


def message(progress: Progress, line: str) -> None:
    """Reports a line that is to be kept."""
    progress(MESSAGE, 0, 0, line)
