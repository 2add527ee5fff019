"""The trackers of a run that isn't told otherwise."""

from pipeline.training.trackers.base import MakeTracker
from pipeline.training.trackers.mlflow import make_mlflow
from pipeline.training.trackers.prometheus import make_ray_metrics
from pipeline.training.trackers.tensorboard import make_tensorboard
from pipeline.training.trackers.wandb import make_wandb


def default_trackers(mlflow_uri: str | None = None, wandb_project: str | None = None) -> tuple[MakeTracker, ...]:
    """Returns makers of trackers: Ray's metrics and TensorBoard; MLflow and Weights & Biases where they are asked for.

    mlflow_uri: URI of a tracking server. wandb_project: PROJECT or ENTITY/PROJECT. Raises a PipelineError if
    the package of one isn't installed, or W&B has no API key.
    """
    more: list[MakeTracker] = [make_mlflow(mlflow_uri)] if mlflow_uri else []
    more += [make_wandb(wandb_project)] if wandb_project else []
    return (make_ray_metrics, make_tensorboard, *more)
