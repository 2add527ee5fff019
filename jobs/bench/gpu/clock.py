"""Timing on a device: rates of steps, in interleaved rounds, by the clock of a host that waits for the device."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from jobs.bench.gpu.child import Bench

Steps = Callable[[int], None]
"""Does so many steps."""


def now(device: torch.device) -> float:
    """Returns the time, in seconds, at which the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(device: torch.device, call: Callable[[], object]) -> float:
    """Returns the seconds of a call and of the work that it gives to the device."""
    start = now(device)
    call()
    return now(device) - start


def median_seconds(device: torch.device, call: Callable[[], object], repetitions: int) -> float:
    """Returns the median seconds of a call, after one that doesn't count."""
    call()
    return statistics.median(seconds_of(device, call) for _ in range(repetitions))


@dataclass
class Measured:
    """Steps a second of one variant, round after round, and the peak of its memory."""

    rates: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    """Most memory that torch had allocated on the device during the variant; 0 on a CPU."""

    @property
    def rate(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)


def interleaved(
    bench: Bench, variants: dict[str, Steps], device: torch.device, rounds: int, seconds: float
) -> dict[str, Measured]:
    """Returns steps a second of each variant; they take turns, so that a machine that slows down slows all of them.

    seconds: of each turn. Ends before a round for which the section has no time, and says so; variants of which no
    round was measured are left out.
    """
    found = {name: Measured() for name in variants}
    counts: dict[str, int] = {}
    for name, steps in variants.items():
        if not bench.has(2 * seconds, name):
            continue
        _reset_peak(device)
        steps(3)  # kernels are loaded and chosen, memory is taken
        one = seconds_of(device, lambda: steps(2)) / 2  # noqa: B023
        counts[name] = max(2, round(seconds / max(one, 1e-6)))
        found[name].peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    for number in range(rounds):
        if not bench.has(1.2 * seconds * len(counts), f"round {number + 1} of {rounds}"):
            break
        for name, count in counts.items():
            taken = seconds_of(device, lambda: variants[name](count))  # noqa: B023
            found[name].rates.append(count / taken)
    return {name: measured for name, measured in found.items() if measured.rates}


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
