"""Event files for TensorBoard, in RUN/tensorboard, by tensorboardX: it comes with Ray and loads no TensorFlow."""

import importlib.util
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.storage import files
from pipeline.training.trackers.base import TrackedRun, Tracker

FOLDER = "tensorboard"
_UPLOAD_SECONDS = 60


def make_tensorboard(job: TrackedRun, step: int) -> Tracker | None:
    """Returns a `TensorBoard`, or None where the package isn't installed."""
    return TensorBoard(job, step) if importlib.util.find_spec("tensorboardX") else None


class TensorBoard:
    """Writes event files. A resumed run writes another file, which purges the steps after `step` of the ones before.

    A run that isn't in a local folder has its file written to a temporary folder, and uploaded every minute and at the
    end.
    """

    def __init__(self, job: TrackedRun, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._target, self._scratch = files.join(job.run, FOLDER), None
        folder = self._target
        if not files.is_local(job.run):
            self._scratch = tempfile.TemporaryDirectory(prefix="tensorboard-")
            folder = self._scratch.name
        self._writer: Any = SummaryWriter(folder, purge_step=step + 1 if step else None, filename_suffix=f".{step}")
        self._uploaded = time.monotonic()
        self._writer.add_text("recipe", f"```\n{json.dumps(asdict(job.recipe), indent=1)}\n```", step)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Adds loss, learning rate, speed and quarantined rows; a loss of None leaves a gap in the curve."""
        tags = {
            "train/loss": line["loss"],
            "train/learning_rate": line["learning_rate"],
            "speed/images_per_second": line["images_per_second"],
            "speed/data_wait": line["data_wait"],
            "train/quarantined_rows": quarantined,
        }
        self._add(tags, line["step"])
        self._upload(_UPLOAD_SECONDS)

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Adds the validation scores."""
        self._add({f"val/{name}": value for name, value in scores.items()}, step)
        self._writer.flush()

    def end(self, finished: bool) -> None:
        """Closes the file, and uploads it unless the run breaks off: the storage itself may be the reason."""
        self._writer.close()
        if finished:
            self._upload(0)
        if self._scratch:
            self._scratch.cleanup()

    def _add(self, values: dict[str, Any], step: int) -> None:
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step)

    def _upload(self, every_seconds: float) -> None:
        if self._scratch and time.monotonic() - self._uploaded >= every_seconds:
            self._writer.flush()
            for file in Path(self._scratch.name).iterdir():
                files.write_bytes(files.join(self._target, file.name), file.read_bytes())
            self._uploaded = time.monotonic()
