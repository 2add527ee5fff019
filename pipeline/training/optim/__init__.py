"""Optimisers by name, their parameter groups, and learning-rate schedules.

A network and a recipe come in. Torch optimisers go out, with groups that carry their name and peak rate. The door is
`__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.training.optim.factory import make_optimizers
    from pipeline.training.optim.found_inf import set_found_inf
    from pipeline.training.optim.optimizers import Lamb, Lars, Muon
    from pipeline.training.optim.schedules import learning_rate_factor, set_learning_rates

__all__ = ["Lamb", "Lars", "Muon", "learning_rate_factor", "make_optimizers", "set_found_inf", "set_learning_rates"]
__getattr__ = lazy(
    __name__,
    {
        "factory": ("make_optimizers",),
        "found_inf": ("set_found_inf",),
        "optimizers": ("Lamb", "Lars", "Muon"),
        "schedules": ("learning_rate_factor", "set_learning_rates"),
    },
)
