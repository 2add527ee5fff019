"""The precision of a forward pass in training: what a recipe asks for, on a device that may not compute in it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.config.choices import Precision
from pipeline.config.recipe import Recipe

Autocast = Callable[[], AbstractContextManager[None]]

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Volta, the first with tensor cores. Older cards compute float16 slowly: a GTX 1080 at 1/64 of its speed in float32.
_FAST_FLOAT16 = (7, 0)


def computes_bfloat16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def forward_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the precision of the forward pass in training on a device.

    "auto": bfloat16 where the device computes in it; float16 on GPUs before Ampere (V100, T4), whose losses have to be
    scaled; else float32.
    """
    if precision != "auto":
        return _NAMED[precision]
    if computes_bfloat16(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FAST_FLOAT16:
        return torch.float16
    return torch.float32


def make_autocast(recipe: Recipe, device: torch.device) -> Autocast:
    """Returns a function that makes the autocast context of a forward pass, in the recipe's precision on `device`."""
    dtype = forward_dtype(recipe.precision, device)
    enabled = dtype != torch.float32

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)

    return autocast
