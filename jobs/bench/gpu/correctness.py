"""Checks of correctness: optimisers, steps that aren't finite, resuming, collective operations, waits of the host."""

import copy
import os
import tempfile
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.steps import photo_batch, resnet_recipe
from jobs.bench.gpu.whole_loop import Loop, open_loop
from pipeline.config.choices import OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.loader.batch import Batch
from pipeline.models.run_state import is_rank_local
from pipeline.training.on_device.waits import count_waits
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.safeguards.checkpoints import save_checkpoint

_STEPS = 3
_TOLERANCE = 1e-4
"""Largest difference of weights after three steps, in L2 norm and relative to the change that the steps made."""
_MUON_TOLERANCE = 0.05
"""Muon's Newton-Schulz iteration is computed in bfloat16, which has 8 bits."""
_WAIT_STEPS = 6


def run(bench: Bench) -> None:
    """Checks what must hold on any device, however fast it is."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic products; read when the device is first used
    device = bench.device
    for name in get_args(OptimizerName):
        with bench.part(f"optimiser {name}"):
            _check_optimizer(bench, name, device)
    recipe = resnet_recipe(bench, 2 if bench.small else 64)
    batch = photo_batch(bench, recipe.global_batch_size, recipe.image_size_px)
    with bench.part("waits"):
        _check_waits(bench, recipe, batch, device)
    with bench.part("a planted NaN"):
        _check_not_finite(bench, recipe, batch, device)
    with bench.part("resume"):
        _check_resume(bench, recipe, batch, device)
    with bench.part("collective operations"):  # last: it may hang where NCCL does
        _check_collectives(bench, device)


# --- optimisers --------------------------------------------------------------------------------------------------


def _check_optimizer(bench: Bench, name: OptimizerName, device: torch.device) -> None:
    """Three steps on the device in float32 against the same steps on the CPU in float64."""
    recipe = replace(make_recipe("resnet50"), optimizer=name, learning_rate=0.01, weight_decay=1e-3)
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    gradients = [[torch.randn_like(p) for p in start.parameters()] for _ in range(_STEPS)]
    ours = _stepped(start, recipe, gradients, device, torch.float32)
    exact = _stepped(start, recipe, gradients, torch.device("cpu"), torch.float64)
    before = torch.cat([p.detach().flatten().double() for p in start.parameters()])
    difference = float((ours - exact).norm() / (exact - before).norm())
    tolerance = _MUON_TOLERANCE if name == "muon" else _TOLERANCE
    line = f"difference to float64 {difference:.2g} of the change, tolerance {tolerance:g}"
    bench.check(f"optimiser {name}", difference <= tolerance, line, difference=difference, tolerance=tolerance)


def _stepped(
    start: nn.Module, recipe: Recipe, gradients: list[list[Tensor]], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns all weights, float64 on the CPU, after steps with the given gradients."""
    net = copy.deepcopy(start).to(device, dtype)
    optimizers = make_optimizers(net, recipe)
    for step in gradients:
        for parameter, gradient in zip(net.parameters(), step, strict=True):
            parameter.grad = gradient.to(device, dtype)
        for optimizer in optimizers:
            optimizer.step()
    return torch.cat([p.detach().flatten().double().cpu() for p in net.parameters()])


# --- the loop ----------------------------------------------------------------------------------------------------


def _check_not_finite(bench: Bench, recipe: Recipe, batch: Batch, device: torch.device) -> None:
    """A step whose loss is NaN, and that may be skipped, changes no weight and no state of the optimiser."""
    with open_loop(recipe, batch, device, max_skipped_steps=1) as loop:
        loop(2)
        before = _tensors(loop)
        handle = loop.worker.learner.net.register_forward_hook(lambda _, __, logits: logits * float("nan"))
        loop(1)
        handle.remove()
        after, skipped = _tensors(loop), list(loop.worker.state.skipped)
        loop(1)
        moved = any(not torch.equal(after[name], tensor) for name, tensor in _tensors(loop).items())
    # BatchNorm's statistics were updated by the forward pass, before anyone could know.
    changed = [name for name in before if not is_rank_local(name) and not torch.equal(before[name], after[name])]
    line = f"steps {skipped} skipped, {len(changed)} of {len(before)} tensors changed; the next step updates: {moved}"
    passed = not changed and skipped == [2] and moved
    bench.check("a planted NaN changes nothing", passed, line, changed=changed[:5])


def _check_resume(bench: Bench, recipe: Recipe, batch: Batch, device: torch.device) -> None:
    """A run that goes on from a checkpoint ends with the bits of one that was never interrupted."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True) as folder:
        with open_loop(recipe, batch, device, deterministic=True) as loop:
            loop(4)
            whole = _tensors(loop)
        with open_loop(recipe, batch, device, folder, deterministic=True) as loop:
            loop(2)
            save_checkpoint(loop.worker)
            loop.worker.writer.wait()
        with open_loop(recipe, batch, device, folder, deterministic=True) as loop:
            resumed_at = loop.worker.state.step
            loop(2)
            parts = _tensors(loop)
    different = [name for name in whole if not torch.equal(whole[name], parts[name])]
    line = f"resumed at step {resumed_at} of 4; {len(different)} of {len(whole)} tensors differ"
    bench.check("resume, bit for bit", resumed_at == 2 and not different, line, different=different[:5])


def _check_waits(bench: Bench, recipe: Recipe, batch: Batch, device: torch.device) -> None:
    """Between two reports the host asks the device for nothing: twice the steps have no more waits."""
    steps = 2 if bench.small else _WAIT_STEPS
    with open_loop(recipe, batch, device) as loop:
        loop(2)
        with count_waits(device) as short:
            loop(steps)
        with count_waits(device) as long:
            loop(2 * steps)
    with count_waits(device) as planted:
        torch.ones((), device=device).item()
    waits, places = long.total - short.total, long.places - short.places
    line = f"{waits} in {steps} steps between reports; {short.total} at their begin and in the report"
    table = {f"{kind} {place}": count for (kind, place), count in places.items()}
    bench.record("waits", {"steps": steps, "waits": waits, "places": table}, line)
    bench.check("no wait in a step", waits == 0, line + "".join(f"; {name}" for name in list(table)[:3]))
    bench.check("a planted wait is counted", planted.total > 0, f"{planted.total} in a call of item()")


def _tensors(loop: Loop) -> dict[str, Tensor]:
    """Returns copies of a checkpoint's tensors, by name."""
    tensors = loop.worker.learner.tensors(loop.worker.state)
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if name != "losses"}


# --- collective operations ---------------------------------------------------------------------------------------


def _check_collectives(bench: Bench, device: torch.device) -> None:
    """NCCL, or gloo on a CPU, starts with one rank, adds up, and wraps a network in DistributedDataParallel."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            numbers = torch.arange(1000.0, device=device)
            torch.distributed.all_reduce(numbers)
            net = nn.parallel.DistributedDataParallel(nn.Linear(8, 2).to(device))
            net(torch.ones(4, 8, device=device)).sum().backward()
            gradient = [parameter.grad for parameter in net.parameters()]
            right = bool((numbers.cpu() == torch.arange(1000.0)).all()) and all(g is not None for g in gradient)
        finally:
            torch.distributed.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if backend == "nccl" else ""  # type: ignore[no-untyped-call]
    line = f"{backend} {version}".strip() + ", one rank: all-reduce and DistributedDataParallel"
    bench.check("collective operations", right, line)
