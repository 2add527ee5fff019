"""torch.compile in training: each size of batch is compiled before the first step, and leaves nothing changed."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.core.errors import RecipeError
from pipeline.core.keyed_random import Epochs
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order

# torch's own limit, 8, would be passed by the sizes of batches and images of a recipe whose images grow; torch then
# goes on without compiling, after a warning.
_MOST_SHAPES = 64


def compile_network(model: Any, exits: ExitStack) -> Any:
    """Returns a network that is compiled for each shape of its input when it is first called with it.

    exits: restores torch's limit of shapes. One graph for all shapes (`dynamic=True`) would be slower at each of them,
    and there are few: the global batches of a run have two sizes.
    """
    from torch._dynamo import config  # takes seconds, and only what compiles needs it

    most = max(_MOST_SHAPES, config.recompile_limit)
    exits.enter_context(config.patch(recompile_limit=most))
    return torch.compile(model, dynamic=False)


def steps_of_each_size(order: Order, first_step: int) -> list[int]:
    """Returns the first step of each size of a global batch, from step `first_step` of the run on.

    There are one or two: the batches of an epoch differ by one row (times `repeats`) at most.
    """
    steps = range(first_step, first_step + order.steps_per_epoch * order.repeats)
    return sorted({order.batch_size(step): step for step in reversed(steps)}.values())


def warm_up(net: nn.Module, gradients: Callable[[Batch, int], object], batches: Iterable[tuple[int, Batch]]) -> None:
    """Computes the gradients of stand-ins for batches of each size, so that what is compiled is ready.

    net: the network, in training mode. gradients: of a batch and the number of its step (`TrainStep.gradients`).
    batches: (step, stand-in). Neither weights nor buffers, such as BatchNorm's statistics, nor the state of a random
    generator are changed, and no gradients stay. Raises RecipeError if torch can't compile the network.
    """
    from torch._dynamo.exc import TorchDynamoException

    device = next(net.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for step, batch in batches:
                gradients(batch, step)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2])  # "backend=... raised:", and what
            raise RecipeError(f"compile: torch.compile fails for this network here ({reason}); leave it out") from error
        finally:
            net.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])


def stand_in(num_rows: int, size_px: int, device: torch.device, epochs: Epochs = 0) -> Batch:
    """Returns a batch of black images, all of class 0, as the loaders lay batches out in memory."""
    rows = np.arange(num_rows)
    images = torch.zeros(num_rows, size_px, size_px, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.zeros(num_rows, dtype=torch.int64, device=device)
    return Batch(0, rows, images, labels, rows.astype(np.uint64), rows, rows[:0], epochs)
