"""Ray Train: how workers are placed on nodes, and the error of a run that failed."""

from typing import Any

from pipeline.cluster.ray_errors import pipeline_error
from pipeline.cluster.ray_tasks import run_in_thread

# Label of a Ray node on which no worker trains: `ray start --labels image-pipeline/role=augment`.
AUGMENT_NODES = ("image-pipeline/role", "augment")


TRAINING_NODES = {AUGMENT_NODES[0]: f"!{AUGMENT_NODES[1]}"}  # all others, as Ray selects by labels


def scaling_config(
    workers: int | tuple[int, int], use_gpu: bool, cpus_per_worker: float, resize_seconds: float = 60
) -> Any:
    """Returns Ray Train's ScalingConfig: CPUs of different nodes, GPUs near each other, none of a node that augments.

    workers: how many, or at least and at most, looked at again every `resize_seconds`.
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
    """Runs a trainer of Ray Train. Raises the PipelineError that a worker met, if it is one."""
    try:
        run_in_thread(trainer.fit)
    except Exception as error:
        if (cause := pipeline_error(error)) is not None:
            raise cause from None
        raise
