"""Use of CPU, memory and GPU over the time of a run, on the node of rank 0: sampled by a thread, kept in the run."""

import threading
import time
from contextlib import suppress
from typing import Any

import psutil
import torch

from pipeline.storage import files

NAME = "machine_use.json"
_SECONDS = 2.0
_MAX_SAMPLES = 600


class MachineUse:
    """Samples the machine every two seconds; the interval doubles, and every other sample goes, when there are many.

    A run that goes on adds to the samples of its earlier starts.
    """

    def __init__(self, run: str) -> None:
        self._uri, self._seconds = files.join(run, NAME), _SECONDS
        self.samples = read_machine_use(run)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._begins = True
        psutil.cpu_percent()  # the first call has no time before it
        self._thread = threading.Thread(target=self._sample, daemon=True, name="machine-use")
        self._thread.start()

    def save(self) -> None:
        """Writes the samples into the run."""
        with self._lock:
            samples = list(self.samples)
        files.write_json(self._uri, samples)

    def stop(self, save: bool = True) -> None:
        """Ends the thread, and writes the samples unless told otherwise."""
        self._stopped.set()
        self._thread.join()
        if save:
            self.save()

    def _sample(self) -> None:
        while not self._stopped.wait(self._seconds):
            sample = {"time": time.time(), "cpu_percent": psutil.cpu_percent(), **_memory(), **_gpu()}
            sample |= {"begins": True} if self._begins else {}
            with self._lock:
                self._begins = False
                self.samples.append(sample)
                if len(self.samples) > _MAX_SAMPLES:
                    first = {number for number, each in enumerate(self.samples) if "begins" in each}
                    self.samples = [
                        each for number, each in enumerate(self.samples) if number % 2 == 0 or number in first
                    ]
                    self._seconds *= 2


def _memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {"memory_gb": (memory.total - memory.available) / 1e9, "memory_total_gb": memory.total / 1e9}


def _gpu() -> dict[str, float]:
    """Returns use and memory of the GPU that this process trains on; the use needs NVIDIA's library (pynvml)."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info()
    values = {"gpu_memory_gb": (total - free) / 1e9, "gpu_memory_total_gb": total / 1e9}
    with suppress(ImportError, RuntimeError):  # the library isn't installed, or doesn't know the device
        values["gpu_percent"] = float(torch.cuda.utilization())
    return values


def read_machine_use(run: str) -> list[dict[str, Any]]:
    """Returns the samples of a run: time (seconds since the epoch), cpu_percent (of all cores), memory_gb, and gpu_....

    The first of each start has `begins`. Empty for a run that has none.
    """
    uri = files.join(run, NAME)
    samples: list[dict[str, Any]] = files.read_json(uri) if files.exists(uri) else []
    return samples
