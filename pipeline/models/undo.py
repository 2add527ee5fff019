"""Undoes an update of tensors on their device, by a flag that the host never reads."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.models.device.sharding import own_part

# Integers of the same size. A number times 1 or 0 as an integer is its own bits or +0.0, NaN and infinity included.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Undo:
    """A copy of what tensors hold, from which an update is taken back bit for bit, without a wait of the host.

    tensors: real, all on one device; of those that are spread over ranks, this rank's parts count. The copy needs as
    much memory as they do.
    """

    @torch.no_grad()
    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [own_part(tensor) for tensor in tensors]
        self._before = [torch.empty_like(tensor) for tensor in self._tensors]
        if self._tensors:
            torch._foreach_copy_(self._before, self._tensors)

    @torch.no_grad()
    def undo_if(self, flag: Tensor, created: Iterable[Tensor] = ()) -> None:
        """Puts the tensors back, and `created` to zero, where `flag` is 1; changes nothing where it is 0.

        flag: scalar on the tensors' device. created: tensors that the update has made. At most once: it uses up the
        copy.
        """
        now, before = _by_size(self._tensors), _by_size(self._before)
        for integers, tensors in _by_size(own_part(tensor) for tensor in created).items():
            torch._foreach_mul_(tensors, 1 - flag.to(integers))
        for integers in now:
            undone = flag.to(integers)
            torch._foreach_mul_(now[integers], 1 - undone)
            torch._foreach_mul_(before[integers], undone)
            torch._foreach_add_(now[integers], before[integers])


def _by_size(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Returns the tensors seen as integers of their size, by type: a list of one type is one launch."""
    grouped: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        integers = _INTEGERS[tensor.element_size()]
        grouped[integers].append(tensor.detach().view(integers))
    return grouped
