"""Single training steps on one batch that stays on the device: plain PyTorch's, and this project's."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.clock import Steps
from jobs.bench.gpu.pictures import photographs
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.dataset.image_codec import read_jpeg_header
from pipeline.loader.batch import Batch
from pipeline.loader.decode import CropGeometry, best_decoder, decode_batch
from pipeline.loader.sample_order import Order
from pipeline.models.factory import recipe_model
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.train_step import TrainStep

NUM_CLASSES = 1000
_NO_END = 10**9


def resnet_recipe(bench: Bench, batch_size: int) -> Recipe:
    """Returns the recipe of the measured steps: ResNet-50 at 224 px in bfloat16; small: ResNet-18 at 72 px."""
    # Never a checkpoint: those are measured by themselves.
    recipe = replace(make_recipe("resnet50"), global_batch_size=batch_size, checkpoint_every_steps=_NO_END)
    if not bench.small:
        return replace(recipe, precision="bfloat16")
    # In float32: bfloat16 is slow on most CPUs. Above 64 px, for below it our first layer isn't torchvision's.
    return replace(recipe, precision="float32", model="resnet18", image_size_px=72, evaluate_resize_px=72)


def photo_batch(bench: Bench, count: int, size_px: int) -> Batch:
    """Returns photographs on the host: centre crops of `size_px`, repeated if there are fewer than `count`."""
    found = photographs(bench.settings)
    images = [memoryview(found[number % len(found)]) for number in range(count)]
    sizes = np.array([read_jpeg_header(image)[:2] for image in images], dtype=np.int32)
    pixels = np.empty((count, size_px, size_px, 3), dtype=np.uint8)
    decode_batch(images, CropGeometry.centre_crops(size_px, size_px, sizes), str, best_decoder(), None, pixels)
    rows = np.arange(count)
    labels = torch.from_numpy(rows % NUM_CLASSES)
    return Batch(0, rows, torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, rows.astype(np.uint64), rows, rows[:0])


def plain_steps(
    recipe: Recipe,
    batch: Batch,
    compiled: str = "",
    channels_last: bool = True,
    fused: bool = True,
    copied_from: Batch | None = None,
) -> Steps:
    """Returns plain PyTorch's steps: torchvision's network, channels_last, autocast to bfloat16, fused SGD.

    compiled: mode of torch.compile; "reduce-overhead" is with CUDA graphs. Empty: not compiled. copied_from: the batch
    on the host, from which each step copies it, as a loop without copies ahead does; None: it stays on the device.
    """
    import torchvision

    device = batch.images.device
    torch.manual_seed(0)
    net = torchvision.models.get_model(recipe.model, num_classes=NUM_CLASSES)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device, memory_format=memory_format)
    images = batch.images.contiguous(memory_format=memory_format)
    called = torch.compile(net, dynamic=False, mode=compiled) if compiled else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-5, fused=fused)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (recipe.pixel_mean, recipe.pixel_std))
    net.train()

    def steps(count: int) -> None:
        for _ in range(count):
            pixels = copied_from.images.to(device) if copied_from else images
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                out = called((pixels.float() / 255 - mean) / std)
            loss(out.float(), batch.labels).backward()
            optimizer.step()

    return steps


def our_steps(recipe: Recipe, batch: Batch, compiled: bool = False) -> Steps:
    """Returns this project's steps: `TrainStep` without the loop around it."""
    step = make_step(recipe, batch, compiled)[0]

    def steps(count: int) -> None:
        for _ in range(count):
            one_step(step, batch)

    return steps


def make_step(
    recipe: Recipe, batch: Batch, compiled: bool = False, num_classes: int = NUM_CLASSES
) -> tuple[TrainStep, nn.Module, list[torch.optim.Optimizer]]:
    """Returns a step on batches like `batch`, with its network and optimisers, from the same first weights."""
    device = batch.images.device
    torch.manual_seed(0)
    net: Any = recipe_model(recipe, num_classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    optimizers = make_optimizers(net, recipe)
    order = Order((len(batch.rows),), 0, len(batch.rows))
    step = TrainStep(recipe, torch.compile(net, dynamic=False) if compiled else net, optimizers, order)
    return step, net, optimizers


def one_step(step: TrainStep, batch: Batch, number: int = 0) -> None:
    """Does one step."""
    _, norm = step.gradients(batch, number)
    step.update(norm, number, _NO_END)
