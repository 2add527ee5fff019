"""Counts the operations of a training step by its parts, as a GPU would be given them, on any machine.

Each operation costs the host some microseconds on a GPU, whatever the size of the batch: with small images that is what
limits a run. Counted on a CPU with small batches, because their number doesn't depend on the size.

Examples:
    uv run jobs/bench/operations.py
    uv run jobs/bench/operations.py --recipe cifar10-96 --names
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated
from unittest import mock

import numpy as np
import torch

from jobs.terminal.command import option, run
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.loader.batch import Batch
from pipeline.loader.resident import ResidentSplit, resident_batches
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.transform import training_transform
from pipeline.models.device.compiling import stand_in
from pipeline.models.factory import recipe_model
from pipeline.training.on_device.operations import count_operations
from pipeline.training.on_device.steps_in_flight import StepsInFlight
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.optimizers import newton_schulz_in_products
from pipeline.training.setup import make_average
from pipeline.training.train_step import TrainStep

PARTS = ("batch", "forward and backward", "loss and gradient judged", "update", "average")
_BATCH, _STEPS, _CPU = 8, 5, torch.device("cpu")


@dataclass(frozen=True)
class Args:
    """Flags."""

    recipe: Annotated[tuple[str, ...], option("recipes whose steps are counted", "NAME ...", "cifar10-94 resnet50")] = (
        "cifar10-94",
        "resnet50",
    )
    names: Annotated[bool, option("also print how often each operation is launched", "")] = False


def count_step(recipe: Recipe) -> dict[str, Counter[str]]:
    """Returns the operations of a step in the middle of an epoch, by part (`PARTS`) and name.

    Of the steps of the recipe's `look_ahead_every_steps` or `ema_every_steps`, one that updates the average.
    """
    recipe = replace(recipe, global_batch_size=_BATCH, precision="bfloat16", accumulate_steps=1)
    with _as_on_a_gpu():
        net = recipe_model(recipe, 10).to(memory_format=torch.channels_last).train()
        optimizers, average = make_optimizers(net, recipe), make_average(recipe, net)
        order = training_order(recipe, (_STEPS * _BATCH,), 0)
        step, in_flight = TrainStep(recipe, net, optimizers, order), StepsInFlight(1, _CPU, _STEPS)
        batches = _batches(recipe)
        for number in range(_STEPS):
            counts = {part: Counter[str]() for part in PARTS}
            with _count(counts["batch"]):
                batch = next(batches)
            with _count(counts["forward and backward"]):
                loss, norm = step.gradients(batch, number)
            with _count(counts["loss and gradient judged"]):
                found_inf = in_flight.add(number, batch.rows, loss, norm)
            with _count(counts["update"]):
                step.update(norm, number, 2 * _STEPS, found_inf)
            with _count(counts["average"]):
                if average is not None:
                    average.update(number + 1, 2 * _STEPS, found_inf)
    return counts


@contextmanager
def _count(into: Counter[str]) -> Iterator[None]:
    with count_operations() as counts:
        yield
    into.update(counts)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Has what depends on the device done as on a GPU: fused optimisers, norms of lists, Muon's products."""
    # By mock, because nobody is to choose it.
    with (
        mock.patch("pipeline.training.optim.factory._fused", return_value={"fused": True}),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True),
        mock.patch("pipeline.training.optim.optimizers.newton_schulz", newton_schulz_in_products),
    ):
        yield


def _batches(recipe: Recipe) -> Iterator[Batch]:
    """Yields batches as the loader makes them of images on the device; streamed ones are there already."""
    size = min(recipe.image_size_px, 64)
    if recipe.residency == "stream":
        yield from (stand_in(_BATCH, size, _CPU) for _ in range(_STEPS))
        return
    rows = _STEPS * _BATCH
    images = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    keys, none = np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.bool_)
    split = ResidentSplit(images, torch.zeros(rows, dtype=torch.int64), keys, none)
    sampler = TrainSampler(training_order(recipe, (rows,), 0), _STEPS)
    yield from resident_batches(split, sampler, training_transform(recipe, 0, "kernel"))


def main(args: Args) -> None:
    """Prints a row for each part of a step, and a column for each recipe."""
    counted = {name: count_step(make_recipe(name)) for name in args.recipe}
    print(" " * 26 + "".join(f"{name:>14}" for name in counted))
    rows = {part: [counts[part].total() for counts in counted.values()] for part in PARTS}
    rows["the step"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for part, totals in rows.items():
        print(f"{part:<26}" + "".join(f"{total:>14,}" for total in totals))
    if args.names:
        for name, counts in counted.items():
            together = sum(counts.values(), Counter[str]())
            print(f"\n{name}: " + ", ".join(f"{count} {each}" for each, count in together.most_common()))


if __name__ == "__main__":
    run(main, Args, __doc__ or "")
