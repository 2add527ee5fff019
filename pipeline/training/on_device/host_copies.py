"""Small copies from a device to the host that nothing waits for: they are read steps later."""

import torch
from torch import Tensor


class HostCopies:
    """A ring of copies of a vector on the device, in memory of the host.

    width: numbers of the vector. depth: copies that are kept; the next one overwrites the oldest. On a GPU the memory
    is pinned, so that a copy runs on the device's own timeline, and an event says that it is complete. On a CPU a copy
    is complete at once.
    """

    def __init__(self, width: int, depth: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        memory = torch.empty((depth, width), dtype=torch.float64, pin_memory=on_gpu)
        self._slots, self._values = list(memory), memory.numpy()
        self._events = [torch.cuda.Event() for _ in self._slots] if on_gpu else []  # type: ignore[no-untyped-call]

    def start(self, number: int, values: Tensor) -> None:
        """Starts to copy the `number`-th vector, float64 [width], and returns at once."""
        slot = number % len(self._slots)
        self._slots[slot].copy_(values, non_blocking=True)
        if self._events:
            self._events[slot].record()

    def read(self, number: int) -> list[float]:
        """Returns the `number`-th vector. Waits only if the device hasn't come as far as where its copy was started."""
        slot = number % len(self._slots)
        if self._events:
            self._events[slot].synchronize()
        numbers: list[float] = self._values[slot].tolist()
        return numbers
