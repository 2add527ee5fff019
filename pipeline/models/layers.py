"""Layers of a network: found by their type, and the blur that is put before strided convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import CheckpointError

_MIN_BLURRED_CHANNELS = 16  # leaves out the first convolution, which sees the image's 3 channels, as FFCV does


def last_layer(net: nn.Module) -> nn.Module:
    """Returns the linear layer that computes the logits. Raises CheckpointError if the network has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise CheckpointError(f"{type(net).__name__} has no linear layer, whose inputs would be its features")
    return linear[-1]


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Returns the convolutions in the order in which they were constructed."""
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


# Packages whose modules draw no random numbers but by torch's own layers.
_WITHOUT_DRAWS = ("torch.nn.modules.", "pipeline.models.", "torchvision.models.resnet", "torchvision.models.vgg",
                  "torchvision.models.alexnet")  # fmt: skip
_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, nn.RNNBase,
            nn.MultiheadAttention)  # fmt: skip


def may_draw(net: nn.Module) -> bool:
    """Whether the network may draw random numbers in training: by dropout, or in code that isn't known here."""
    return any(
        (isinstance(module, (*_DRAWING, DroppedNorm)) and getattr(module, "p", 1.0) > 0)
        or not f"{type(module).__module__}.".startswith(_WITHOUT_DRAWS)
        for module in net.modules()
    )


def num_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())


class DroppedNorm(nn.BatchNorm2d):
    """BatchNorm at the end of a residual block that leaves the block out for an image with some probability.

    In training, the others are scaled by 1 / (1 - probability) (stochastic depth, Huang et al., arXiv 1603.09382). Its
    parameters are called as BatchNorm's.
    """

    def __init__(self, num_features: int, probability: float) -> None:
        super().__init__(num_features)
        self.p = probability

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, C, H, W]. Returns the same shape."""
        from torchvision.ops import stochastic_depth  # here: torchvision takes over a second

        dropped: Tensor = stochastic_depth(super().forward(x), self.p, "row", self.training)
        return dropped


def add_stochastic_depth(model: nn.Module, probability: float) -> bool:
    """Leaves out residual blocks of a ResNet of torchvision, in place; returns whether there are any.

    probability: of the last block; it grows linearly from 0 at the first one.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    blocks = [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for number, block in enumerate(blocks):
        name = "bn3" if isinstance(block, Bottleneck) else "bn2"
        norm = DroppedNorm(getattr(block, name).num_features, probability * number / max(1, len(blocks) - 1))
        norm.load_state_dict(getattr(block, name).state_dict())
        setattr(block, name, norm)
    return bool(blocks)


def zero_residual_norms(model: nn.Module) -> bool:
    """Sets the scale of each residual block's last norm to 0, in place; returns whether there are any blocks.

    For torchvision's ResNets; timm's have it so.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    blocks = [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in blocks:
        nn.init.zeros_(getattr(block, "bn3" if isinstance(block, Bottleneck) else "bn2").weight)
    return bool(blocks)


class BlurPool(nn.Module):
    """Anti-aliased downsampling: blurs with the filter [1 2 1] x [1 2 1] / 16, then convolves (Zhang, 1904.11486).

    conv: the convolution to wrap, with a stride above 1.
    """

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.conv = conv
        self.register_buffer("blur", (line[:, None] * line / 16).expand(conv.in_channels, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, C, H, W]. Returns the convolution of the blurred input, in the convolution's shape."""
        return self.conv(F.conv2d(x, self.blur.to(x.dtype), padding=1, groups=len(self.blur)))


def add_blur_pool(model: nn.Module) -> None:
    """Wraps, in place, each strided convolution of 16 or more input channels, as FFCV's recipes do."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= _MIN_BLURRED_CHANNELS:
            setattr(model, name, BlurPool(child))
        else:
            add_blur_pool(child)
