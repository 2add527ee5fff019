"""From a data set to batches: in an order that anyone can recompute, decoded and augmented, each row exactly once.

The URI of a data set, a recipe and a seed come in. Batches of uint8 images and labels go out, the same for any number
of workers. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.loader.api import Loader
    from pipeline.loader.batch import Batch
    from pipeline.loader.normalise import Normalise
    from pipeline.loader.resident import load_resident, resident_batches
    from pipeline.loader.sample_order import Order
    from pipeline.loader.samplers import EvaluationSampler, TrainSampler, train_eval_split
    from pipeline.loader.streaming.threads import local_batches
    from pipeline.loader.transform import Transform, evaluation_transform, training_transform

__all__ = [
    "Batch",
    "EvaluationSampler",
    "Loader",
    "Normalise",
    "Order",
    "TrainSampler",
    "Transform",
    "evaluation_transform",
    "load_resident",
    "local_batches",
    "resident_batches",
    "train_eval_split",
    "training_transform",
]
__getattr__ = lazy(
    __name__,
    {
        "api": ("Loader",),
        "batch": ("Batch",),
        "streaming.threads": ("local_batches",),
        "normalise": ("Normalise",),
        "resident": ("load_resident", "resident_batches"),
        "sample_order": ("Order",),
        "samplers": ("EvaluationSampler", "TrainSampler", "train_eval_split"),
        "transform": ("Transform", "evaluation_transform", "training_transform"),
    },
)
