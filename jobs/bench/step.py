"""Measures the speed of a training step against plain PyTorch, with and without torch.compile, and of checkpoints.

There is no loader and no Ray: each step takes the same batch of real images, decoded beforehand. Plain PyTorch means
torchvision's network and torch's SGD in float32, and in bfloat16 with channels_last. The variants take turns in several
rounds, and the first steps of each turn aren't counted.

Examples:
    uv run jobs/bench/step.py --images IMAGES.tar --recipe resnet50-16 --sizes-px 160 192 224
    uv run jobs/bench/step.py --images IMAGES.tar --checkpoints --to s3://bucket/prefix
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from jobs.bench.ingest import read_tar
from jobs.terminal import command
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.models.checkpoint_writer import CheckpointWriter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.loader.batch import Batch

_WARM_UP_STEPS = 3
_PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Args:
    """Flags. Runs on the first GPU, or else on the CPU."""

    images: Annotated[str, command.option("a local tar of JPEGs", "TAR")]
    recipe: Annotated[str, command.option("recipe of the step", "NAME", "resnet50-16")] = "resnet50-16"
    sizes_px: Annotated[tuple[int, ...], command.option("sides of the images, in turn", "N...", "160 192 224")] = (
        160,
        192,
        224,
    )
    batch_size: Annotated[int, command.option("images in a step", "N", "256 on a GPU, 16 on a CPU")] = 0
    seconds: Annotated[float, command.option("seconds of each turn", "N", "20")] = 20.0
    rounds: Annotated[int, command.option("rounds over all variants", "N", "3")] = 3
    compiled: Annotated[bool, command.option("measure torch.compile, too", "")] = False
    checkpoints: Annotated[bool, command.option("instead, measure steps with and without checkpoints", "")] = False
    every_steps: Annotated[int, command.option("steps between checkpoints", "N", "10")] = 10
    to: Annotated[str | None, command.option("folder of the checkpoints", "URI", "a temporary folder")] = None


def main(args: Args) -> None:
    """Measures, and prints a table."""
    import torch

    if args.every_steps < 2 or args.rounds < 1 or args.seconds <= 0 or not args.sizes_px:
        raise RecipeError("every-steps must be 2 or more, rounds 1 or more, seconds above 0, and sizes-px not empty")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = args.batch_size or (256 if device.type == "cuda" else 16)
    recipe = replace(make_recipe(args.recipe), global_batch_size=batch_size)
    with command.Display() as display:
        if args.checkpoints:
            _checkpoints(args, recipe, device, display)
        else:
            _steps(args, recipe, device, display)


def make_batch(tar: str, count: int, size_px: int) -> "Batch":
    """Returns a batch of the first `count` images of a tar, repeated if it has fewer, cropped to S x S pixels."""
    import simplejpeg
    import torch

    from pipeline.loader.batch import Batch
    from pipeline.loader.decode import CropGeometry, best_decoder, decode_batch

    found = read_tar(tar)
    images = [memoryview(found[number % len(found)]) for number in range(count)]
    sizes = np.array([simplejpeg.decode_jpeg_header(image)[:2] for image in images])
    pixels = np.empty((count, size_px, size_px, 3), dtype=np.uint8)
    decode_batch(images, CropGeometry.centre_crops(size_px, size_px, sizes), str, best_decoder(), None, pixels)
    rows = np.arange(count)
    labels = torch.from_numpy(rows % 1000)
    return Batch(0, rows, torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, rows.astype(np.uint64), rows, rows[:0])


# --- speed -------------------------------------------------------------------------------------------------------


def _steps(args: Args, recipe: Recipe, device: "torch.device", display: command.Display) -> None:
    from pipeline.models.device.precision import forward_dtype
    from pipeline.models.factory import recipe_model
    from pipeline.models.flops import operations_per_image, peak_operations

    peak, source = peak_operations(device, forward_dtype(recipe.precision, device))
    lines = []
    variants = ("plain float32", "plain bfloat16", "ours", *(["ours, compiled"] if args.compiled else []))
    done, total = 0, len(args.sizes_px) * args.rounds * len(variants)
    for size_px in args.sizes_px:
        batch = make_batch(args.images, recipe.global_batch_size, size_px).to(device)
        steps = {variant: make_step(variant, recipe, batch, device) for variant in variants}
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(args.rounds):
            for variant, step in steps.items():
                display("step", done, total, f"{size_px} px, {variant}")
                rates[variant].append(len(batch.rows) * _rate(step, args.seconds, device))
                done += 1
        operations = operations_per_image(recipe_model(recipe, 1000), size_px)
        for variant, values in rates.items():
            rate = statistics.median(values)
            compared = f"{rate / statistics.median(rates['plain bfloat16']):.2f} of plain bfloat16"
            lines.append(
                (
                    f"{size_px} px, {variant}",
                    f"{rate:,.1f} images/s, {compared}, {rate * operations / peak:.0%} of the peak",
                )
            )
    display("step", total, total)
    title = f"\n{recipe.model}, batches of {recipe.global_batch_size}, {device}, medians of {args.rounds} rounds"
    command.print_table(title, [*lines, ("peak", f"{peak:.3g} operations/s ({source})")])


def _rate(step: Callable[[], None], seconds: float, device: "torch.device") -> float:
    """Returns steps per second, measured over `seconds` after a few uncounted steps."""
    for _ in range(_WARM_UP_STEPS):
        step()
    start, count = _synchronised_time(device), 0
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return count / (_synchronised_time(device) - start)


def make_step(variant: str, recipe: Recipe, batch: "Batch", device: "torch.device") -> Callable[[], None]:
    """Returns a function that does one training step in the variant of that name."""
    if variant.startswith("plain"):
        return _plain_step(recipe, batch, device, bfloat16=variant.endswith("bfloat16"))
    update, _, _ = our_step(recipe, batch, device, compiled="compiled" in variant)
    return update


def _plain_step(recipe: Recipe, batch: "Batch", device: "torch.device", bfloat16: bool) -> Callable[[], None]:
    import torch
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.get_model(recipe.model, num_classes=1000).to(device)
    images = batch.images.contiguous()
    if bfloat16:
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (recipe.pixel_mean, recipe.pixel_std))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            out = net((images.float() / 255 - mean) / std)
        loss(out.float(), batch.labels).backward()
        optimizer.step()

    return step


def our_step(
    recipe: Recipe, batch: "Batch", device: "torch.device", compiled: bool = False
) -> "tuple[Callable[[], None], nn.Module, list[torch.optim.Optimizer]]":
    """Returns a function that does one training step of this project, and the step's network and optimisers."""
    import torch

    from pipeline.loader.sample_order import Order
    from pipeline.models.factory import recipe_model
    from pipeline.training.optim.factory import make_optimizers
    from pipeline.training.train_step import TrainStep

    torch.manual_seed(0)
    net = recipe_model(recipe, 1000).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = make_optimizers(net, recipe)
    order = Order((len(batch.rows),), 0, len(batch.rows))
    step = TrainStep(recipe, torch.compile(net) if compiled else net, optimizers, order)

    def once() -> None:
        _, norm = step.gradients(batch, 0)
        step.update(norm, 0, 1_000_000)

    return once, net, optimizers


# --- checkpoints -------------------------------------------------------------------------------------------------


def _checkpoints(args: Args, recipe: Recipe, device: "torch.device", display: command.Display) -> None:
    from pipeline.models import checkpoint
    from pipeline.models.run_state import RunState, collect
    from pipeline.storage import files

    batch = make_batch(args.images, recipe.global_batch_size, args.sizes_px[0]).to(device)
    step, net, optimizers = our_step(recipe, batch, device)
    for _ in range(_WARM_UP_STEPS):
        step()
    tensors = collect(net, optimizers, None, RunState(1))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    folder = tempfile.mkdtemp(prefix="bench-step-")
    run = files.absolute(args.to) if args.to else folder
    times: dict[str, list[float]] = {"without": [], "in the background": [], "waited for": []}
    saves = dict.fromkeys(times, 0)
    try:
        writer, number = CheckpointWriter(run), 0
        for round_ in range(args.rounds):
            for mode, seconds in times.items():
                display("round", round_ * len(times) + list(times).index(mode), args.rounds * len(times), mode)
                end = time.perf_counter() + args.seconds
                while time.perf_counter() < end:
                    start, number = time.perf_counter(), number + 1
                    step()
                    _synchronised_time(device)
                    if mode != "without" and number % args.every_steps == 0:
                        writer.save(number, tensors, {})
                        saves[mode] += 1
                        if mode == "waited for":
                            writer.wait()
                    seconds.append(time.perf_counter() - start)
                writer.wait()
        display("round", args.rounds * len(times), args.rounds * len(times))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if args.to:
            for step_number in checkpoint.steps(run):
                files.delete_tree(checkpoint.folder(run, step_number))
    lines = [
        (
            f"checkpoints {mode}",
            ", ".join(f"p{p} {1000 * np.percentile(seconds, p):,.0f} ms" for p in _PERCENTILES)
            + f"; mean {1000 * statistics.fmean(seconds):,.0f} ms; {len(seconds):,} steps, {saves[mode]} checkpoints",
        )
        for mode, seconds in times.items()
    ]
    title = f"\nstep times of {recipe.model}, {recipe.global_batch_size} images of {args.sizes_px[0]} px, {device}"
    command.print_table(title, [*lines, ("one checkpoint", f"{size / 1e6:,.0f} MB to {args.to or 'a local folder'}")])


def _synchronised_time(device: "torch.device") -> float:
    """Returns the time after the device has finished all its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
