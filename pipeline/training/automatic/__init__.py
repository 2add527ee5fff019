"""The recipe of a run that isn't given one: chosen for the data and the machine, with reasons and warnings.

A data set's manifest and a machine come in. A recipe goes out, the weights to start from, and what to tell people. The
door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.training.automatic.choose import Choice, choose_recipe
    from pipeline.training.automatic.facts import DataFacts, data_facts
    from pipeline.training.automatic.machine import Machine, this_machine
    from pipeline.training.automatic.warn import run_warnings

__all__ = ["Choice", "DataFacts", "Machine", "choose_recipe", "data_facts", "run_warnings", "this_machine"]
__getattr__ = lazy(
    __name__,
    {
        "choose": ("Choice", "choose_recipe"),
        "facts": ("DataFacts", "data_facts"),
        "machine": ("Machine", "this_machine"),
        "warn": ("run_warnings",),
    },
)
