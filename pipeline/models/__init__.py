"""Networks, their losses and weight averages, and what is stored of them: checkpoints and finished models.

A recipe or the URI of a run comes in. Networks go out, and files of tensors that never run code when they are opened.
The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.models.batch_transforms import transform_batch
    from pipeline.models.factory import make_model, recipe_model
    from pipeline.models.load import TrainedModel, find_model, load_net
    from pipeline.models.losses import sample_losses
    from pipeline.models.pretrained.fit import load_pretrained
    from pipeline.models.tensor_file import read_tensors

__all__ = [
    "TrainedModel",
    "find_model",
    "load_net",
    "load_pretrained",
    "make_model",
    "read_tensors",
    "recipe_model",
    "sample_losses",
    "transform_batch",
]
__getattr__ = lazy(
    __name__,
    {
        "batch_transforms": ("transform_batch",),
        "factory": ("make_model", "recipe_model"),
        "load": ("TrainedModel", "find_model", "load_net"),
        "losses": ("sample_losses",),
        "pretrained.fit": ("load_pretrained",),
        "tensor_file": ("read_tensors",),
    },
)
