"""Metrics of a run for Prometheus, exported by Ray on each node."""

import threading
from typing import Any

from pipeline.storage import files
from pipeline.training.trackers.base import TrackedRun, Tracker

_SET_AGAIN_SECONDS = 2.0


def make_ray_metrics(job: TrackedRun, step: int) -> Tracker | None:
    """Returns a `RayMetrics`, or None where Ray doesn't run."""
    import ray

    from pipeline.training.resume import STARTS  # loads torch

    if not ray.is_initialized():
        return None
    return RayMetrics(job.name, len(files.list_files(files.join(job.run, STARTS))))


class RayMetrics:
    """Exports counters of images and seconds, and gauges of step, loss, speed, top-1, starts, skipped rows and steps.

    Metric names begin with `ray_image_pipeline_`; the tag `run` is the run's name. starts: starts of the run so far,
    this one included. Ray drops a gauge that isn't set for some seconds, so a thread repeats the last values until the
    run ends.
    """

    def __init__(self, run: str, starts: int) -> None:
        from ray.util.metrics import Counter, Gauge

        self.tags = {"run": run}
        keys = ("run",)
        self._seconds = Counter("image_pipeline_seconds", "of the training loop, by stage", ("run", "stage"))
        self._images = Counter("image_pipeline_images", "trained on", keys)
        meanings = {
            "step": "done so far",
            "loss": "of training, since the last report",
            "images_per_second": "since the last report",
            "top1": "on the val split, of the last evaluation",
            "starts": "of the run so far",
            "quarantined_rows": "corrupt rows left out so far",
            "skipped_steps": "steps without an update, for loss or gradient weren't finite",
        }
        self._gauges = {name: Gauge(f"image_pipeline_{name}", text, keys) for name, text in meanings.items()}
        self._values: dict[str, float] = {"starts": starts}
        self._ended = threading.Event()
        threading.Thread(target=self._set_again, daemon=True, name="ray-metrics").start()

    def _set_again(self) -> None:
        while not self._ended.wait(_SET_AGAIN_SECONDS):
            self._set({})

    def _set(self, values: dict[str, float]) -> None:
        self._values |= values
        for name, value in list(self._values.items()):
            self._gauges[name].set(value, self.tags)

    def line(self, line: dict[str, Any], quarantined: int) -> None:
        """Adds to the counters and sets the gauges; a loss of None keeps the gauge's last value."""
        for name, seconds in line["seconds"].items():
            if seconds > 0:
                self._seconds.inc(seconds, {**self.tags, "stage": name})
        self._images.inc(line["images"], self.tags)
        names = ("step", "loss", "images_per_second", "skipped_steps")
        values = {name: line[name] for name in names if line[name] is not None}
        self._set({**values, "quarantined_rows": quarantined})

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Sets the gauge of top-1."""
        if scores["top1"] is not None:
            self._set({"top1": scores["top1"]})

    def end(self, finished: bool) -> None:
        """Stops repeating the gauges, so that Ray drops them."""
        self._ended.set()
