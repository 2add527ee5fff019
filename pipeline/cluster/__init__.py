"""Ray: sessions, resources, tasks whose results keep their order, and errors and progress of remote workers.

Functions and numbers of workers come in. Results go out in the order of the inputs, and errors go out as the exception
that a worker raised. Ray is imported when a session starts, not before.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.cluster.ray_errors import pipeline_error, user_error, user_message
    from pipeline.cluster.ray_tasks import map_in_order, map_tables, ray_is_initialized, usable_cpus
    from pipeline.cluster.ray_train import fit_trainer, scaling_config
    from pipeline.cluster.resources import count_gpus, wait_for_resources, worker_cpus, workers_use_gpus
    from pipeline.cluster.session import ray_in_process, ray_session

__all__ = [
    "count_gpus",
    "fit_trainer",
    "map_in_order",
    "map_tables",
    "pipeline_error",
    "ray_in_process",
    "ray_is_initialized",
    "ray_session",
    "scaling_config",
    "usable_cpus",
    "user_error",
    "user_message",
    "wait_for_resources",
    "worker_cpus",
    "workers_use_gpus",
]
__getattr__ = lazy(
    __name__,
    {
        "ray_errors": ("pipeline_error", "user_error", "user_message"),
        "ray_tasks": ("map_in_order", "map_tables", "ray_is_initialized", "usable_cpus"),
        "ray_train": ("fit_trainer", "scaling_config"),
        "resources": ("count_gpus", "wait_for_resources", "worker_cpus", "workers_use_gpus"),
        "session": ("ray_in_process", "ray_session"),
    },
)
