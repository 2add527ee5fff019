"""Ceilings of the device: matrix products in bfloat16, copies in its memory, and copies from the host."""

import torch

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import median_seconds

_REPETITIONS = 10


def run(bench: Bench) -> None:
    """Measures how fast this device multiplies and copies, which bounds everything else."""
    device = bench.device
    cuda = device.type == "cuda"
    side = 8192 if cuda and not bench.small else 512
    megabytes = 4096 if cuda and not bench.small else 32
    with bench.part("matrix product"):
        matmul = _matmul_rate(device, side)
        bench.record("matmul_tflops", matmul, f"{matmul:,.1f} TFLOP/s, bfloat16, {side} x {side} of random numbers")
    with bench.part("copy in memory"):
        copy = _copy_rate(device, megabytes)
        bench.record("memory_copy_gbs", copy, f"{copy:,.1f} GB/s, bytes read and written, {megabytes} MB")
    if not cuda:
        bench.remark("copies from the host to the device: none without a GPU")
        return
    for name, pinned in (("pageable", False), ("pinned", True)):
        with bench.part(f"copy from {name} memory"):
            rate = _host_rate(device, 64 if bench.small else 512, pinned)
            bench.record(f"host_to_device_{name}_gbs", rate, f"{rate:,.1f} GB/s from {name} memory")


def _matmul_rate(device: torch.device, side: int) -> float:
    """Returns TFLOP/s of a product of two square matrices in bfloat16; a multiply-add counts as two."""
    # Random numbers: products of zeros are faster than any real ones.
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    for _ in range(3):  # an idle GPU raises its clocks meanwhile
        a @ b
    return 2 * side**3 / median_seconds(device, lambda: a @ b, _REPETITIONS) / 1e12


def _copy_rate(device: torch.device, megabytes: int) -> float:
    """Returns GB/s of a copy in the device's memory, counting bytes read and bytes written."""
    source = torch.randint(0, 255, (megabytes * 1_000_000,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(device, lambda: target.copy_(source), _REPETITIONS) / 1e9


def _host_rate(device: torch.device, megabytes: int, pinned: bool) -> float:
    """Returns GB/s of a copy from the host's memory to the device's."""
    # One draw of a megabyte: the host draws a gigabyte in ten seconds.
    source = torch.randint(0, 255, (1_000_000,), dtype=torch.uint8).repeat(megabytes)
    if pinned:
        source = source.pin_memory()
    target = torch.empty_like(source, device=device)
    return source.numel() / median_seconds(device, lambda: target.copy_(source, non_blocking=True), _REPETITIONS) / 1e9
