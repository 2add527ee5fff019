"""ResNet-50 at 224 px: plain PyTorch, this project's step, its whole loop, and what each option adds."""

from collections.abc import Callable
from functools import partial

import torch

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import Measured, Steps, interleaved
from jobs.bench.gpu.steps import make_step, our_steps, photo_batch, plain_steps, resnet_recipe
from jobs.bench.gpu.whole_loop import open_loop
from pipeline.loader.batch import Batch
from pipeline.models.flops import operations_per_image

PLAIN, STEP, LOOP = "plain PyTorch", "our step", "our whole loop"
_ROUNDS = 3
_COMPILE_SECONDS = 40.0  # that compiling one network takes, about, on the machine of an H100


def run(bench: Bench) -> None:
    """Measures images a second for each size of batch, then with the largest compiled, and CUDA graphs."""
    sizes = (2,) if bench.small else (256, 128, 32)
    recipe = resnet_recipe(bench, sizes[0])
    batch = photo_batch(bench, sizes[0], recipe.image_size_px)
    with bench.part("operations"):
        operations = operations_per_image(make_step(recipe, batch)[1], recipe.image_size_px)
        bench.record("operations_per_image", operations, f"{operations:.3g} operations, {recipe.model}")
    for size in sizes:
        with bench.part(f"batch {size}"):
            _eager(bench, _first(batch, size), with_options=size == sizes[0])
    _compiled(bench, batch)
    _graphs(bench, _first(batch, sizes[-1]))


def _eager(bench: Bench, batch: Batch, with_options: bool) -> None:
    """Measures what torch runs operation by operation. with_options: also without each of the options."""
    size = len(batch.rows)
    recipe, on_device = resnet_recipe(bench, size), batch.to(bench.device)
    plain, ours = plain_steps(recipe, on_device), our_steps(recipe, on_device)
    with open_loop(recipe, batch, bench.device) as loop:
        variants: dict[str, Steps] = {PLAIN: timed_kernels(plain), STEP: timed_kernels(ours), LOOP: loop}
        # Each turn starts a loop and catches up with it, some 20 ms (a guess) that a run's epochs have once.
        _measure(bench, f"batch {size}", variants, size, seconds=2.0 if with_options else 1.0)
    if with_options and bench.device.type == "cuda":
        options: dict[str, Steps] = {
            PLAIN: timed_kernels(plain),
            f"{STEP}, without cudnn.benchmark": timed_kernels(ours, False),
            f"{PLAIN}, contiguous": timed_kernels(plain_steps(recipe, on_device, channels_last=False)),
            f"{PLAIN}, SGD not fused": timed_kernels(plain_steps(recipe, on_device, fused=False)),
            f"{PLAIN}, copies in the step": timed_kernels(plain_steps(recipe, on_device, copied_from=batch)),
        }
        _measure(bench, f"batch {size}, options", options, size, seconds=0.7)


def _compiled(bench: Bench, batch: Batch) -> None:
    """Measures what torch.compile makes of this project's step."""
    if bench.device.type == "cpu":
        bench.remark("torch.compile: measured on a GPU only")
        return
    recipe, on_device = resnet_recipe(bench, len(batch.rows)), batch.to(bench.device)
    _measure_compiled(bench, f"{STEP}, compiled", lambda: our_steps(recipe, on_device, compiled=True), on_device)


def _graphs(bench: Bench, batch: Batch) -> None:
    """Measures CUDA graphs with the smallest batches, where launches take the largest share of a step."""
    if bench.device.type == "cuda":
        recipe, on_device = resnet_recipe(bench, len(batch.rows)), batch.to(bench.device)
        for name, mode in (("compiled", "default"), ("compiled, CUDA graphs", "reduce-overhead")):
            _measure_compiled(
                bench, f"{PLAIN}, {name}", partial(plain_steps, recipe, on_device, compiled=mode), on_device
            )


def _measure_compiled(bench: Bench, name: str, make: Callable[[], Steps], batch: Batch) -> None:
    with bench.part(name):
        if bench.has(_COMPILE_SECONDS, name):
            _measure(bench, f"batch {len(batch.rows)}, compiled", {name: timed_kernels(make())}, len(batch.rows))


def timed_kernels(steps: Steps, timed: bool = True) -> Steps:
    """Returns the steps with cuDNN's choice of kernels by timing (`cudnn.benchmark`), which training sets, or without.

    The setting is the process's own, and an open loop has set it.
    """

    def with_setting(count: int) -> None:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, timed
        try:
            steps(count)
        finally:
            torch.backends.cudnn.benchmark = before

    return with_setting


def _measure(bench: Bench, name: str, variants: dict[str, Steps], batch_size: int, seconds: float = 1.5) -> None:
    """Measures variants in turn, and records each one's images a second beside plain PyTorch's."""
    rounds, seconds = (1, 0.2) if bench.small else (_ROUNDS, seconds)
    found = interleaved(bench, variants, bench.device, rounds, seconds)
    plain = found.get(PLAIN)
    for variant, measured in found.items():
        bench.record(f"{name}: {variant}", _figures(measured, batch_size, plain), _line(measured, batch_size, plain))


def _figures(measured: Measured, batch_size: int, plain: Measured | None) -> dict[str, float]:
    figures = {
        "images_per_second": measured.rate * batch_size,
        "step_ms": 1000 / measured.rate,
        "rounds": len(measured.rates),
        "peak_gib": measured.peak_bytes / 2**30,
    }
    return figures | ({"of_plain": measured.rate / plain.rate} if plain else {})


def _line(measured: Measured, batch_size: int, plain: Measured | None) -> str:
    beside = f", {measured.rate / plain.rate:.3f} of plain" if plain else ""
    memory = f", peak {measured.peak_bytes / 2**30:.1f} GiB" if measured.peak_bytes else ""
    return f"{measured.rate * batch_size:,.0f} images/s{beside}{memory}"


def _first(batch: Batch, count: int) -> Batch:
    """Returns the first `count` images of a batch, in memory of their own."""
    images = batch.images[:count].clone(memory_format=torch.channels_last)
    rows, positions = batch.rows[:count], batch.positions[:count]
    return Batch(0, rows, images, batch.labels[:count].clone(), batch.keys[:count], positions, batch.corrupt)
