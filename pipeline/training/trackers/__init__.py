"""Trackers: report the progress of a run to Ray's metrics (Prometheus), TensorBoard, MLflow, Weights & Biases, or
code of your own.

Lines of a run's history and validation scores come in. They go out to the services that a job names in
`TrainJob.trackers`. A tracker that fails is left out; it never ends a run.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.training.trackers.base import MakeTracker, TrackedRun, Tracker
    from pipeline.training.trackers.mlflow import make_mlflow
    from pipeline.training.trackers.prometheus import make_ray_metrics
    from pipeline.training.trackers.tensorboard import make_tensorboard
    from pipeline.training.trackers.wandb import make_wandb

__all__ = ["MakeTracker", "TrackedRun", "Tracker", "make_mlflow", "make_ray_metrics", "make_tensorboard", "make_wandb"]
__getattr__ = lazy(
    __name__,
    {
        "base": ("MakeTracker", "TrackedRun", "Tracker"),
        "mlflow": ("make_mlflow",),
        "prometheus": ("make_ray_metrics",),
        "tensorboard": ("make_tensorboard",),
        "wandb": ("make_wandb",),
    },
)
