"""Anti-aliased downsampling: a blur before each strided convolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MIN_CHANNELS = 16  # leaves out the first convolution, which sees the image's 3 channels, as FFCV does


class BlurPool(nn.Module):
    """Blurs its input with the filter [1 2 1] x [1 2 1] / 16, then convolves (Zhang, arXiv 1904.11486).

    conv: the convolution to wrap, with a stride above 1.
    """

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.conv = conv
        self.register_buffer("blur", (line[:, None] * line / 16).expand(conv.in_channels, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, C, H, W]. Returns what the convolution alone would return, in the same shape."""
        return self.conv(F.conv2d(x, self.blur.to(x.dtype), padding=1, groups=len(self.blur)))


def add_blur_pool(model: nn.Module) -> None:
    """Wraps, in place, each strided convolution of 16 or more input channels, as FFCV's recipes do."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= _MIN_CHANNELS:
            setattr(model, name, BlurPool(child))
        else:
            add_blur_pool(child)
