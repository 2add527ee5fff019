"""Floating-point operations: how many training takes, by torch's counter, and how many per second a device can do."""

import copy
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

# Dense operations per second in bfloat16 and float16, from NVIDIA's data sheets for SXM cards; PCIe cards are slower.
_PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "V100": 125e12, "T4": 65e12,
}  # fmt: skip
_COUNTED_IMAGES = 8  # BatchNorm needs more than one in training mode
_CPU_SIDE, _GPU_SIDE = 1024, 8192  # of the multiplied matrices: large enough to hide the cost of a call
_REPETITIONS = 6


def operations_per_image(net: nn.Module, size_px: int, backward: bool = True) -> float:
    """Returns the operations of a forward pass over one image of S x S pixels, and of a backward pass, too, or without.

    A multiply-add counts as two. Torch counts matrix products and convolutions only, which are nearly all of it. The
    pass runs on the meta device, where shapes are computed but no values.
    """
    twin = copy.deepcopy(net).to("meta").train()
    custom = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter, torch.set_grad_enabled(backward):
        outputs = twin(torch.empty(_COUNTED_IMAGES, 3, size_px, size_px, device="meta"))
        if backward:
            outputs.sum().backward()
    return counter.get_total_flops() / _COUNTED_IMAGES


def _convolution_backward(*shapes: Any, out_shape: Any, **_: Any) -> int:
    """Returns torch's count of a convolution's backward pass, corrected: its own leaves the groups of the weights'
    gradient out, and counts a depthwise convolution as a hundred times what it is."""
    *before, groups, mask = shapes
    count: Any = conv_backward_flop  # wrapped: it takes the shapes of its outputs, too
    of_input = count(*before, groups, (mask[0], False, False), out_val=out_shape)
    of_weights = count(*before, groups, (False, mask[1], False), out_val=out_shape)
    return int(of_input + of_weights // groups)


def peak_operations(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Returns the operations per second that a device can do, and the source of the number.

    For a known GPU, in bfloat16 or float16, it is the data sheet's. Otherwise it is measured: the rate of a product of
    large matrices, with the threads that this process has.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS.items():
            if known in name and dtype != torch.float32:
                return peak, f"{known}, data sheet, dense {_name(dtype)}"
    size = _CPU_SIDE if device.type == "cpu" else _GPU_SIDE
    matrix = torch.randn(size, size, device=device).to(dtype)
    best_seconds = float("inf")
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds, f"a product of {size} x {size} matrices in {_name(dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def training_operations(net: nn.Module, sizes_px: list[int], images_per_epoch: int) -> dict[str, Any]:
    """Returns {"total": operations of a training run, "per_image": operations of an image in its last epoch}.

    sizes_px: side of the images in each epoch.
    """
    of_size = {size: operations_per_image(net, size) for size in set(sizes_px)}
    total = sum(of_size[size] for size in sizes_px) * images_per_epoch
    return {"total": total, "per_image": of_size[sizes_px[-1]]}
