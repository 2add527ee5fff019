"""Finds places where a host would wait for a GPU, on a machine without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What reads a value of a tensor (item, tolist of one, bool, int, float), or has a size that depends on values.
_READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}


class _Refuses(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _READS:
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def refuse_host_waits() -> Iterator[None]:
    """Raises AssertionError if its block reads a value of a tensor."""
    with _Refuses():
        yield
