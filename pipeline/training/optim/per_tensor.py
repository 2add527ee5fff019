"""A number for each of many tensors, in the form that `_foreach_` operations take at once."""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.loader.device.send import send

_ROW = 1024  # numbers that are filled at once; a tensor's last row is longer than needed


def per_tensor(optimizer: torch.optim.Optimizer, tensors: list[Tensor], numbers: Tensor) -> list[Tensor]:
    """Returns the number of each tensor spread over its shape; valid until the next call with the same tensors.

    tensors: parameters of the optimiser, of one dtype, on one device. numbers: [len(tensors)], on that device. Tensors
    and a list of scalars on the device aren't multiplied at once by torch, but one by one: a launch for each. Lists of
    equal shapes and memory formats are. The memory for it, as much as the tensors have, stays with the optimiser.
    """
    cache: dict[Any, _Spread] = optimizer.__dict__.setdefault("_spread_numbers", {})
    key = tuple(map(id, tensors))
    if key not in cache:
        cache[key] = _Spread(tensors)
    return cache[key](numbers)


class _Spread:
    """Memory of the shapes and memory formats of tensors, which is filled tensor by tensor in one operation."""

    def __init__(self, tensors: list[Tensor]) -> None:
        like, rows = tensors[0], [-(-tensor.numel() // _ROW) for tensor in tensors]
        self._rows = torch.empty((sum(rows), _ROW), dtype=like.dtype, device=like.device)
        self._owners = send(np.repeat(np.arange(len(rows)), rows), like.device)
        starts = itertools.accumulate(rows, initial=0)
        self._views = [
            self._rows.as_strided(tensor.size(), _strides(tensor), start * _ROW)
            for tensor, start in zip(tensors, starts, strict=False)
        ]

    def __call__(self, numbers: Tensor) -> list[Tensor]:
        self._rows.copy_(numbers[self._owners, None])
        return self._views


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Returns the strides of a tensor, or those of a contiguous one where its elements have gaps between them."""
    is_dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.stride() if is_dense else torch.empty(tensor.shape, device="meta").stride()
