"""Counts the operations that a step launches, on a machine without a GPU, too: each costs the host microseconds."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# They make a view or a tensor without a kernel, or mark a range for the profiler. The schema says so of most views.
_FREE = {
    "detach", "empty", "empty_like", "empty_strided", "new_empty", "alias", "lift_fresh", "_unsafe_view", "set_",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


class _Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _FREE and not func.is_view:
            self._counts[name] += _launches(name, args)
        return func(*args, **(kwargs or {}))


def _launches(name: str, args: Any) -> int:
    """Returns 1, or for a _foreach_ operation on lists that torch can't take at once, the length of the lists."""
    lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
    if not name.startswith("_foreach") or len(lists) < 2:
        return 1
    alike = all(len({_layout(tensor) for tensor in tensors}) == 1 for tensors in zip(*lists, strict=True))
    return 1 if alike else len(lists[0])


def _layout(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    strides = (stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if side != 1)
    return tensor.dtype, tensor.shape, tuple(strides)


@contextmanager
def count_operations() -> Iterator[Counter[str]]:
    """Yields how often each operation of ATen is launched in the block, by name: forward, backward and updates.

    A `_foreach_` operation is one, as on a GPU (in truth one kernel for some hundred tensors), unless the lists' shapes
    or memory formats differ: then torch launches one for each tensor. Views aren't counted.
    """
    counts: Counter[str] = Counter()
    with _Counts(counts):
        yield counts
