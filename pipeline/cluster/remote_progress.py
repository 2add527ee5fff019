"""Progress of remote workers, shown by the process that started them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.progress import Progress


class ProgressBoard:
    """A Ray actor that holds the reports of remote workers until the display takes them.

    Of the reports with a total it keeps the last one only; a report without a total is a message and is never dropped.
    """

    def __init__(self) -> None:
        self._last: tuple[str, int, int, str] | None = None
        self._messages: list[tuple[str, int, int, str]] = []

    def post(self, stage: str, done: int, total: int, remark: str) -> None:
        """Called by a worker: takes a report, with the arguments of `Progress`."""
        if total:
            self._last = (stage, done, total, remark)
        else:
            self._messages.append((stage, done, total, remark))

    def take(self) -> list[tuple[str, int, int, str]]:
        """Called by the display: returns the reports since the last call."""
        new, self._messages = [*self._messages, *([self._last] if self._last else [])], []
        self._last = None
        return new


class RemoteProgress:
    """A `pipeline.core.progress.Progress` for workers: posts to a ProgressBoard and doesn't wait for it."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self._board.post.remote(stage, done, total, remark)


@contextmanager
def remote_progress(display: Progress) -> Iterator[RemoteProgress]:
    """Yields a progress function for remote workers, whose reports are shown on `display`. Needs a Ray session."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node, because any other one may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(ProgressBoard).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.25):
            for report in ray.get(board.take.remote()):
                display(*report)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield RemoteProgress(board)
    finally:
        done.set()
        thread.join(timeout=5)
