"""The number of epochs that fit into a recipe's time budget, `fit_seconds`, on this machine."""

import copy
import time

import numpy as np
import torch
from torch import nn

from pipeline.config.recipe import Recipe
from pipeline.training.train_step import TrainStep
from pipeline.training.worker_data import Batches

# Few choices, so that machines of similar speed train the same number of epochs.
FIT_EPOCHS = (*range(1, 17), 20, 24, 32)
_FIT_STEPS = 12
_FIT_MARGIN = 1.03  # validation and checkpoints come on top of the steps


def fit_epochs(recipe: Recipe, net: nn.Module, train_step: TrainStep, batches: Batches) -> int:
    """Times some steps, undoes them, and returns the most epochs that fit into `fit_seconds`, the same on each rank.

    At most the recipe's epochs, at least one. The slowest rank's time counts.
    """
    optimizers = train_step.optimizers
    before = copy.deepcopy([net.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    step_seconds = _time_steps(train_step, batches)
    net.load_state_dict(before[0])
    for optimizer, values in zip(optimizers, before[1:], strict=True):
        optimizer.load_state_dict(values)
        optimizer.state.clear()
    if train_step.loss_scale:
        train_step.loss_scale.reset()
    slowest = torch.tensor(step_seconds, device=batches.device)
    if batches.world_size > 1:
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    epoch_seconds = float(slowest) * batches.order.steps_per_epoch * _FIT_MARGIN
    choices = [epochs for epochs in FIT_EPOCHS if epochs <= recipe.epochs]
    return max([epochs for epochs in choices if epochs * epoch_seconds <= recipe.fit_seconds], default=1)


def _time_steps(train_step: TrainStep, batches: Batches) -> float:
    """Returns the median seconds of a step, reading included."""
    moments = [time.perf_counter()]
    for step, batch in enumerate(batches.training(0, _FIT_STEPS)):
        _, norm = train_step.gradients(batch.to(batches.device), step)
        train_step.update(norm, step, _FIT_STEPS)
        if batches.device.type == "cuda":
            torch.cuda.synchronize()
        moments.append(time.perf_counter())
    warm = np.diff(moments)[_FIT_STEPS // 4 :]  # the first steps also fill caches and allocate memory
    return float(np.median(warm))
