"""Restart policy: decides when failed workers are no longer started again."""

from typing import Any

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.core.errors import ClusterError
from pipeline.models import checkpoint

_MAX_FAILURES = 3


class RestartPolicy:
    """Decides, after each failure of workers, whether the run ends. Ray Train itself restarts them without limit.

    An error that the user has to fix ends the run at once, because a restart would meet it again. Any other failure may
    happen as often as it likes while new checkpoints are written; after three between two checkpoints the run ends.
    """

    def __init__(self, run: str) -> None:
        self._run, self._last_checkpoint, self._failures = run, "", 0

    def as_callback(self) -> Any:
        """Returns the policy as a callback of Ray Train, which its controller calls."""
        from ray.train import UserCallback

        class Callback(UserCallback):  # type: ignore[misc]
            def after_exception(callback, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: N805
                self.check(worker_exceptions)

        return Callback()

    def check(self, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the error that ends the run, if the run is to end. worker_exceptions: by rank."""
        for error in worker_exceptions.values():
            if (known := pipeline_error(error)) is not None:
                raise known
        newest = checkpoint.latest(self._run) or ""
        self._failures = self._failures + 1 if newest == self._last_checkpoint else 1
        self._last_checkpoint = newest
        if self._failures > _MAX_FAILURES:
            first = str(next(iter(worker_exceptions.values()))).strip().splitlines()
            raise ClusterError(
                f"the workers failed {self._failures} times between {newest or 'the start'} and the next checkpoint; "
                f"last error: {first[-1] if first else 'no message'}; fix its cause and run the same command again"
            )
