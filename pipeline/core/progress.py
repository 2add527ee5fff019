"""Progress of a long stage: the stage calls a function, and the caller decides how to show it."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called from time to time with the progress of a stage.

    stage: its name. done, total: units of work; total is 0 if it isn't known. remark: text to show beside them.
    """

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None: ...


def silent(stage: str, done: int, total: int, remark: str = "") -> None:
    """Shows nothing."""
