"""What a run can use: cores and GPUs, and how long training takes on them."""

import os
from dataclasses import dataclass

from pipeline.cluster.resources import count_gpus

# Operations per second of one core in training, in float32: measured on a core of an AMD EPYC with AVX-512, torch 2.15,
# 2026-11-27, by the time of the process: EfficientNet-Lite0 at 128 px 41 images/s. Of dense networks a guess.
_DENSE, _DEPTHWISE = 80e9, 30e9
_DEPTHWISE_NAMES = ("efficientnet", "mobilenet", "mnasnet", "lite")
CPU_SECONDS = 300.0
"""Seconds of training that a run on CPUs aims at."""


@dataclass(frozen=True)
class Machine:
    """Where a run is trained."""

    cpus: int
    """Cores that this process may use."""
    gpus: int = 0
    """GPUs of this machine, or of the cluster that RAY_ADDRESS names."""

    def images_per_second(self, model: str, operations_per_image: float) -> float:
        """Returns about how many images a second the cores train on: an estimate, good to a factor of two.

        operations_per_image: of a forward and a backward pass (`flops.operations_per_image`).
        """
        rate = _DEPTHWISE if is_depthwise(model) else _DENSE
        return rate * self.cpus**0.9 / max(1.0, operations_per_image)

    def __str__(self) -> str:
        if self.gpus:
            return f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        return f"{self.cpus} core{'s' * (self.cpus > 1)}"


def is_depthwise(model: str) -> bool:
    """Whether a network consists of depthwise convolutions mainly, by its name: CPUs are slow at them, and slower in
    bfloat16."""
    return any(name in model for name in _DEPTHWISE_NAMES)


def this_machine(device: str = "auto") -> Machine:
    """Returns the machine that a run would use. device: "cpu" leaves GPUs aside."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(cpus, 0 if device == "cpu" else count_gpus())
