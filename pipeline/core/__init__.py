"""What every room may use: errors, progress, keyed randomness, logs, processes, versions.

Nothing comes in but plain values. Out go the exception tree, random numbers that depend on (seed, epoch, key) alone,
and facts about this process and this installation. The door is `__all__`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.core.errors import PipelineError

__all__ = ["PipelineError"]
__getattr__ = lazy(__name__, {"errors": ("PipelineError",)})
