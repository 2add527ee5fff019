"""Weights that are spread over the ranks of a run by FSDP2 (torch's `fully_shard`): wholes, and this rank's parts.

Each rank keeps one part of every parameter, of its gradient and of the optimiser's state. A block's weights are
gathered before its forward and backward passes, and let go after them (Zhao et al., arXiv 2304.11277). All functions
take plain tensors, too, which are whole and their own part. Those that gather are for all ranks together.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.tensor_file import Tensors


def shard(net: nn.Module, device: torch.device, world_size: int) -> None:
    """Spreads the parameters of a network over all ranks, block by block. All ranks together.

    net: on `device`, its tensors contiguous, the same on each rank. Buffers stay whole, as in DistributedDataParallel.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)  # what is in no block


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Yields the blocks of a network: modules in a list or sequence that have modules of their own.

    A residual block or a transformer's layer, whichever comes first from outside; none has another one inside.
    """
    for child in net.children():
        listed = isinstance(net, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.Sequential | nn.ModuleList)
        if listed and any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child
        else:
            yield from blocks(child)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over ranks."""
    # Not imported here: it takes half as long as torch itself, and without it no tensor is spread.
    spread = sys.modules.get("torch.distributed.tensor")
    return spread is not None and isinstance(tensor, spread.DTensor)


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a tensor, which shares its memory."""
    local: Any = tensor
    return local.to_local() if is_sharded(tensor) else local


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor as a whole. All ranks together if it is spread over them."""
    spread: Any = tensor
    return spread.full_tensor() if is_sharded(tensor) else spread


def wholes(tensors: Mapping[str, Tensor]) -> Tensors:
    """Returns tensors as wholes, by name. All ranks together if any is spread over them."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Returns a whole tensor, the same on each rank, spread over the ranks as `other` is. Sends nothing."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    return distribute_tensor(tensor.to(other.device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads whole tensors, by name as in its state_dict, into a network, spread over ranks or not."""
    own = net.state_dict()
    net.load_state_dict({name: spread_like(each, own[name]) if name in own else each for name, each in tensors.items()})
