"""Layers and parameters of a network, found by their type."""

from torch import nn

from pipeline.core.errors import CheckpointError


def last_layer(net: nn.Module) -> nn.Module:
    """Returns the linear layer that computes the logits. Raises CheckpointError if the network has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise CheckpointError(f"{type(net).__name__} has no linear layer, whose inputs would be its features")
    return linear[-1]


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Returns the convolutions in the order in which they were constructed."""
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def num_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())
