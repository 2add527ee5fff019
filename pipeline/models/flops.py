"""Floating-point operations: how many training takes, by torch's own counter, and how many a device can do."""

import copy
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16, operations a second, from NVIDIA's data sheets (SXM; PCIe cards are slower).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "B200": 2250e12}


def operations_per_image(net: nn.Module, size_px: int) -> float:
    """Returns the operations of a forward and backward pass over one image of S x S pixels, a multiply-add being two.

    Counted on the meta device, where nothing is computed: matrix products and convolutions, as torch counts them.
    """
    images = 8
    twin = copy.deepcopy(net).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(images, 3, size_px, size_px, device="meta")).sum().backward()
    return counter.get_total_flops() / images


def peak_operations(device: torch.device, bfloat16: bool) -> tuple[float, str]:
    """Returns operations a second that `device` can do, and where the number is from.

    Of a known GPU its data sheet's; of anything else what a product of large matrices reaches here, with the threads
    there are.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS.items():
            if known in name and bfloat16:
                return peak, f"{known}, data sheet, dense bfloat16"
    dtype, size = torch.bfloat16 if bfloat16 else torch.float32, 2048 if device.type == "cpu" else 8192
    left = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"a product of {size} x {size} matrices in {str(dtype).removeprefix('torch.')}"


def training_operations(net: nn.Module, sizes_px: list[int], images_per_epoch: int) -> dict[str, Any]:
    """Returns total and per_image (of the last epoch): sizes_px are those of each epoch."""
    of_size = {size: operations_per_image(net, size) for size in set(sizes_px)}
    total = sum(of_size[size] for size in sizes_px) * images_per_epoch
    return {"total": total, "per_image": of_size[sizes_px[-1]]}
