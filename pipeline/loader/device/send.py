"""Small arrays of the host on their way to a device."""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def send(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Returns the array as a tensor on `device`, without a wait of the host; on a CPU it shares the array's memory.

    To a GPU it is one copy from pinned memory, which torch reuses once the copy is complete. From other memory the host
    would wait for all that it has launched.
    """
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
