"""Conversion of uint8 images to a network's input, on the device."""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Converts uint8 [N, 3, S, S] to float32 of the same shape: (x / 255 - mean) / std, on the module's device.

    One fused multiply-add that reads the bytes, so a GPU writes no intermediate result.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * deviations)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-means / deviations).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [N, 3, S, S]. Returns float32 [N, 3, S, S] in the same memory format."""
        return torch.addcmul(self.shift, images.to(self.scale.device, non_blocking=True), self.scale)
