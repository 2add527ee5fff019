"""The trackers of a run that isn't told otherwise."""

from pipeline.training.trackers.base import MakeTracker
from pipeline.training.trackers.mlflow import make_mlflow
from pipeline.training.trackers.prometheus import make_ray_metrics
from pipeline.training.trackers.tensorboard import make_tensorboard


def default_trackers(mlflow_uri: str | None = None) -> tuple[MakeTracker, ...]:
    """Returns makers of trackers: Ray's metrics, TensorBoard and, with the URI of a tracking server, MLflow.

    Raises RecipeError if MLflow isn't installed.
    """
    return (make_ray_metrics, make_tensorboard, *([make_mlflow(mlflow_uri)] if mlflow_uri else []))
