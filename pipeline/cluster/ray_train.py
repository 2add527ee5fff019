"""Ray Train: the placement of workers on nodes, and the error of a failed run."""

from typing import Any

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.cluster.ray_tasks import run_in_thread

# The label of a node for augmentation only, where no worker trains: ray start --labels image-pipeline/role=augment
AUGMENT_NODES = ("image-pipeline/role", "augment")


TRAINING_NODES = {AUGMENT_NODES[0]: f"!{AUGMENT_NODES[1]}"}  # Ray's selector of all other nodes


def scaling_config(
    workers: int | tuple[int, int], use_gpu: bool, cpus_per_worker: float, resize_seconds: float = 60
) -> Any:
    """Returns Ray Train's ScalingConfig, with workers on training nodes only: spread over nodes, or packed with GPUs.

    workers: their number, or the least and the largest number, between which a run is resized every `resize_seconds`
    at most.
    """
    import ray.train

    return ray.train.ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        label_selector=TRAINING_NODES,
        placement_strategy="PACK" if use_gpu else "SPREAD",
        elastic_resize_monitor_interval_s=resize_seconds,
    )


def fit_trainer(trainer: Any) -> None:
    """Runs a trainer of Ray Train. Raises the PipelineError of a worker or of the controller, if that is the cause."""
    try:
        run_in_thread(trainer.fit)
    except Exception as error:
        if (cause := pipeline_error(error)) is not None:
            raise cause from None
        raise
