"""Flags that the commands for trained models share; their help is the documentation of the fields that they set."""

from dataclasses import dataclass
from typing import Annotated, Any

from jobs.arguments.flags import option
from pipeline.cluster import resources
from pipeline.config.documentation import field_help
from pipeline.evaluation.inputs import EvaluateOptions, Workers

CHECKPOINT_HELP = "a finished run, or RUN/checkpoints/STEP"


def evaluation_option(name: str, value: str, default: str = "") -> Any:
    """Returns the annotation of a flag that sets a field of EvaluateOptions."""
    return option(field_help(EvaluateOptions, name), value, default)


def _option(name: str, value: str, default: str) -> Any:
    return option(field_help(Workers, name), value, default)


@dataclass(frozen=True)
class WorkerArgs:
    """Processes that hold a copy of the network."""

    workers: Annotated[int | None, _option("num", "N", "one a GPU")] = None
    device: Annotated[resources.Device, _option("device", "KIND", "auto")] = "auto"
    wait_minutes: Annotated[float, _option("wait_minutes", "N", "0")] = 0

    def make(self) -> Workers:
        """Returns the workers that the flags describe."""
        return Workers(self.workers, self.device, self.wait_minutes)
