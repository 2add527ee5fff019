"""Progress of remote workers, shown where the job was started."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.progress import Progress


class ProgressBoard:
    """A Ray actor that keeps, for a display elsewhere to read, the last word of a remote stage and all that is said
    once: what has no total.
    """

    def __init__(self) -> None:
        self._last: tuple[str, int, int, str] | None = None
        self._once: list[tuple[str, int, int, str]] = []

    def post(self, stage: str, done: int, total: int, remark: str) -> None:
        """Called by the worker."""
        if total:
            self._last = (stage, done, total, remark)
        else:
            self._once.append((stage, done, total, remark))

    def take(self) -> list[tuple[str, int, int, str]]:
        """Called by the display: what it hasn't shown yet."""
        new, self._once = [*self._once, *([self._last] if self._last else [])], []
        self._last = None
        return new


class RemoteProgress:
    """A `pipeline.core.progress.Progress` that a worker can call: it posts to a ProgressBoard and doesn't wait."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self._board.post.remote(stage, done, total, remark)


@contextmanager
def remote_progress(display: Progress) -> Iterator[RemoteProgress]:
    """Shows on `display` what remote workers report to the value it yields. Needs Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
    board = ray.remote(ProgressBoard).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            for words in ray.get(board.take.remote()):
                display(*words)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield RemoteProgress(board)
    finally:
        done.set()
        thread.join(timeout=5)
