"""Adaptive gradient clipping: the gradient of each unit, cut in proportion to the unit's weights."""

import torch
from torch import Tensor, nn

from pipeline.models.layers import last_layer

_LEAST_NORM = 1e-3  # of weights, as in the paper: those that are 0 at first can be trained, too


def adaptively_clipped(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trained parameters that are clipped: all but the last layer's (arXiv 2102.06171, section 4)."""
    spared = {id(parameter) for parameter in last_layer(model).parameters()}
    return [each for each in model.parameters() if each.requires_grad and id(each) not in spared]


@torch.no_grad()
def clip_adaptively(parameters: list[nn.Parameter], factor: float) -> None:
    """Scales gradients in place to at most `factor` times the norm of the weights, unit by unit.

    A unit is what belongs to one output: a row of a matrix, a kernel of a convolution; of biases and normalisation it
    is the whole tensor (Brock et al., arXiv 2102.06171, equation 3). Tensors of one shape are done together, and
    nothing waits for the device.
    """
    by_shape: dict[tuple[torch.Size, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    for alike in by_shape.values():
        slopes = [parameter.grad for parameter in alike if parameter.grad is not None]
        together = torch.stack(slopes)
        most = _norms(torch.stack(list(alike))).clamp(min=_LEAST_NORM) * factor
        # A quotient of at least 1 leaves the gradient as it is.
        scale = (most / _norms(together).clamp(min=1e-6)).clamp(max=1.0)
        torch._foreach_copy_(slopes, list((together * scale).unbind()))


def _norms(tensors: Tensor) -> Tensor:
    """Returns the norm of each unit, in a shape that `tensors` can be multiplied by. tensors: [K, units, ...]."""
    first = 2 if tensors.ndim > 2 else 1
    if tensors.ndim == 1:  # of scalars
        return tensors.abs()
    return torch.linalg.vector_norm(tensors, dim=tuple(range(first, tensors.ndim)), keepdim=True)
