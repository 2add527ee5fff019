"""Progress of remote workers, shown by the process that started them; and its request that they stop."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.interrupts import StopRequest
from pipeline.core.progress import Progress

_SECONDS_BETWEEN_LOOKS = 0.25


class ProgressBoard:
    """A Ray actor that holds the reports of remote workers until the display takes them.

    Of the reports with a total it keeps the last one only; a report without a total is a message and is never dropped.
    """

    def __init__(self) -> None:
        self._last: tuple[str, int, int, str] | None = None
        self._messages: list[tuple[str, int, int, str]] = []
        self._is_stopping, self._is_watched = False, False

    def post(self, stage: str, done: int, total: int, remark: str) -> None:
        """Called by a worker: takes a report, with the arguments of `Progress`."""
        if total:
            self._last = (stage, done, total, remark)
        else:
            self._messages.append((stage, done, total, remark))

    def take(self, is_stopping: bool) -> tuple[list[tuple[str, int, int, str]], bool]:
        """Called by the display: returns the reports since the last call, and whether workers look for a request.

        is_stopping: whether the workers are to stop.
        """
        self._is_stopping = is_stopping
        new, self._messages = [*self._messages, *([self._last] if self._last else [])], []
        self._last = None
        return new, self._is_watched

    def is_stopping(self) -> bool:
        """Called by a worker: returns whether it is to stop."""
        self._is_watched = True
        return self._is_stopping


class RemoteProgress:
    """A `pipeline.core.progress.Progress` for workers: posts to a ProgressBoard and doesn't wait for it."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self._board.post.remote(stage, done, total, remark)


class RemoteStop:
    """A `StopRequest` for workers: asks a ProgressBoard, a few times in a second at most, and waits for its answer."""

    def __init__(self, board: Any) -> None:
        self._board, self._asked, self._answer = board, 0.0, False

    def __call__(self) -> bool:
        import ray

        if not self._answer and time.monotonic() - self._asked > _SECONDS_BETWEEN_LOOKS:
            self._answer = ray.get(self._board.is_stopping.remote())
            self._asked = time.monotonic()
        return self._answer


@contextmanager
def remote_progress(display: Progress, stop: StopRequest | None = None) -> Iterator[RemoteProgress]:
    """Yields a progress function for remote workers, whose reports are shown on `display`. Needs a Ray session.

    stop: passed on to the workers, which look for it by `stop.remote`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node, because any other one may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(ProgressBoard).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()
    stop = stop or StopRequest()
    stop.remote = RemoteStop(board)

    def follow() -> None:
        ended = False
        while not ended:
            ended = done.wait(_SECONDS_BETWEEN_LOOKS)  # what was reported before the end is shown, too
            reports, is_watched = ray.get(board.take.remote(stop.signal is not None))
            stop.is_watched = stop.is_watched or is_watched
            for report in reports:
                display(*report)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield RemoteProgress(board)
    finally:
        done.set()
        thread.join(timeout=5)
