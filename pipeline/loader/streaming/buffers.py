"""Memory for the images of batches, used again and again: fresh pages cost time, and pinned ones much of it."""

import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]


class ImageBuffers:
    """Memory for batches, pinned or not. A buffer is free again when nobody refers to its batch's images any more.

    There are as many as batches are alive at once. A GPU that still copies from pinned memory is no reference: whoever
    starts the copy has to keep the batch until it is complete (`loader/device/copy_ahead.py`).
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._free: deque[Pixels] = deque()  # the one that was freed last is still in the CPU's caches: taken first
        self._count = 0

    @property
    def count(self) -> int:
        """Buffers that were made and not given back to the system."""
        return self._count

    def take(self, shape: tuple[int, int, int, int]) -> Pixels:
        """Returns an array of `shape` with any content."""
        size = int(np.prod(shape))
        buffer = self._free.pop() if self._free else None
        if buffer is None or len(buffer) < size:  # one that is too small goes: sizes grow from epoch to epoch
            self._count += buffer is None
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        array = buffer[:size].reshape(shape)
        # A view of its own for each batch. All tensors made of it refer to it; slices refer to the buffer, as numpy has
        # it.
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return array
