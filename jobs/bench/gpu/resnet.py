"""ResNet-50 at 224 px: plain PyTorch, this project's step, its whole loop, and what each option adds."""

import torch

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import Measured, Steps, interleaved
from jobs.bench.gpu.steps import make_step, our_steps, photo_batch, plain_steps, resnet_recipe
from jobs.bench.gpu.whole_loop import Loop, open_loop
from pipeline.config.recipe import Recipe
from pipeline.loader.batch import Batch
from pipeline.models.flops import operations_per_image

PLAIN, STEP, LOOP = "plain PyTorch", "our step", "our whole loop"
_ROUNDS = 3
_COMPILE_SECONDS = 45.0  # that compiling one network takes, about; a guess for a fast machine


def run(bench: Bench) -> None:
    """Measures images a second for each batch size, the largest first, and at last what is compiled."""
    device = torch.device(bench.settings.device)
    sizes = (4,) if bench.small else (256, 128, 32)
    recipe = resnet_recipe(bench, sizes[0])
    batch = photo_batch(bench, sizes[0], recipe.image_size_px)
    net = make_step(recipe, batch.to("cpu"))[1]
    operations = operations_per_image(net, recipe.image_size_px)
    bench.record("operations_per_image", operations, f"{operations:.3g} operations, {recipe.model}")
    for size in sizes:
        part = _first(batch, size)
        with open_loop(resnet_recipe(bench, size), part, device) as loop:
            _measure(bench, f"batch {size}", _eager(bench, resnet_recipe(bench, size), part.to(device), loop), size)
    if device.type == "cuda" and bench.has(2 * _COMPILE_SECONDS, "torch.compile"):
        on_device = batch.to(device)
        variants = {
            f"{PLAIN}, compiled": plain_steps(recipe, on_device, compiled=True),
            f"{STEP}, compiled": our_steps(recipe, on_device, compiled=True),
        }
        _measure(bench, f"batch {sizes[0]}, compiled", variants, sizes[0])
    elif device.type == "cpu":
        bench.remark("torch.compile: measured on a GPU only")


def _eager(bench: Bench, recipe: Recipe, batch: Batch, loop: Loop) -> dict[str, Steps]:
    """Returns the variants that torch runs operation by operation; the options come one by one."""
    ours = our_steps(recipe, batch)

    def benchmarked(steps: Steps) -> Steps:
        def with_benchmark(count: int) -> None:
            with torch.backends.cudnn.flags(benchmark=True):
                steps(count)

        return with_benchmark

    plain = plain_steps(recipe, batch)
    variants: dict[str, Steps] = {PLAIN: plain, STEP: ours, LOOP: loop}
    if batch.images.device.type == "cuda":
        variants |= {f"{PLAIN}, cudnn.benchmark": benchmarked(plain), f"{STEP}, cudnn.benchmark": benchmarked(ours)}
    return variants


def _measure(bench: Bench, name: str, variants: dict[str, Steps], batch_size: int) -> None:
    """Measures variants in turn, and records each one's images a second beside plain PyTorch's."""
    device = torch.device(bench.settings.device)
    rounds, seconds = (1, 0.2) if bench.small else (_ROUNDS, 2.0)
    found = interleaved(bench, variants, device, rounds, seconds)
    for variant, measured in found.items():
        plain = found.get(PLAIN) or found.get(f"{PLAIN}, compiled")
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
