"""The precision of the forward pass, by recipe and device; GPUs are described to torch's questions."""

import pytest
import torch

from pipeline.config.choices import Precision
from pipeline.config.presets import make_recipe
from pipeline.models.device.precision import forward_dtype, make_autocast

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "bfloat16", "capability", "dtype"),
    [
        ("H100", True, (9, 0), torch.bfloat16),
        ("A100", True, (8, 0), torch.bfloat16),
        ("T4", False, (7, 5), torch.float16),
        ("V100", False, (7, 0), torch.float16),
        ("GTX 1080", False, (6, 1), torch.float32),  # computes float16 at 1/64 of float32's speed
    ],
)
def test_a_gpu_computes_in_what_it_is_fast_in(
    name: str, bfloat16: bool, capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert forward_dtype("auto", GPU) == dtype, name
    assert forward_dtype("float32", GPU) == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_a_cpu_computes_in_bfloat16_or_float32(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert forward_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_forward_pass_is_computed_in_the_recipes_precision(precision: Precision, dtype: torch.dtype) -> None:
    recipe = make_recipe("digits", precision=precision)
    with make_autocast(recipe, CPU)():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
