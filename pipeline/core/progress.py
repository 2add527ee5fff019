"""How a long stage says how far it is: it calls a function; the job decides how to show it."""

from typing import Protocol


class Progress(Protocol):
    """Called now and then with the stage's name, the work done, the work in all (0: unknown) and a remark."""

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None: ...


def silent(stage: str, done: int, total: int, remark: str = "") -> None:
    """Shows nothing."""
