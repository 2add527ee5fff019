"""Learning-rate schedules, and setting the rates of parameter groups."""

import math
from typing import Any

import torch

from pipeline.config.choices import ScheduleName
from pipeline.config.recipe import Recipe


def learning_rate_factor(
    name: ScheduleName, step: int, num_steps: int, warmup_steps: int, warmup_from: float = 0.0, end: float = 0.0
) -> float:
    """Returns the factor for the peak learning rate in `step`, which counts from 0 to num_steps - 1.

    The first `warmup_steps` steps rise linearly from `warmup_from` (Goyal et al., arXiv 1706.02677, section 2.2). Then,
    with p the share of the remaining steps that is done:

    constant: 1.
    step: 0.1^k, where k is the number of milestones 1/2 and 3/4 that p has reached. He et al., arXiv 1512.03385,
    section 4.2, divide by 10 after 32k and 48k of 64k steps.
    cosine: (1 + cos(pi p)) / 2 (Loshchilov and Hutter, arXiv 1608.03983, equation 5, one cycle, down to 0).
    one-cycle: 1 - p, which with a warm-up is a triangle (Smith and Topin, arXiv 1708.07120).
    parabola: (1 - p)^2 (You et al., arXiv 1708.03888, section 5: polynomial decay with power 2).

    The last three fall to `end` instead of 0, where it is given: end + (1 - end) times the factor.
    """
    if step < warmup_steps:
        return warmup_from + (1 - warmup_from) * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if name == "step":
        return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))
    if name == "constant":
        return 1.0
    falling = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "parabola": (1.0 - progress) ** 2}
    return end + (1 - end) * falling.get(name, 1.0 - progress)


def _factor_of(recipe: Recipe, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """Returns the factor of a recipe in a step.

    By epochs it is timm's: (1 - warmup_from) / warmup_epochs more in each epoch, then a curve that begins with the run.
    """
    start, end, warmup = recipe.warmup_from, recipe.schedule_end, recipe.warmup_epochs
    if recipe.schedule_by == "step":
        return learning_rate_factor(recipe.schedule, step, num_steps, round(warmup * steps_per_epoch), start, end)
    epoch = step // steps_per_epoch
    if epoch < warmup:
        return start + (1 - start) * epoch / warmup
    return learning_rate_factor(recipe.schedule, epoch, -(-num_steps // steps_per_epoch), 0, end=end)


def has_started(group: dict[str, Any], step: int, steps_per_epoch: int) -> bool:
    """Whether a parameter group is trained in `step`, or is still frozen: its "starts" is an epoch, or a fraction."""
    return step >= round(group.get("starts", 0.0) * steps_per_epoch)


def set_learning_rates(
    optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int, num_steps: int, steps_per_epoch: int
) -> float:
    """Sets the learning rate of every group for `step`, and returns the factor that most groups have.

    Groups are those of `make_optimizers`. Before a group starts, its rate is 0. The rate of a group with a limited
    number of epochs is 0 after them; until then it follows the schedule, or, where the group says "falls", one of its
    own that ends with them, without a warm-up.
    """
    factor = _factor_of(recipe, step, num_steps, steps_per_epoch)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group_factor = factor
            if group["epochs"]:
                end = min(num_steps, round(group["epochs"] * steps_per_epoch))
                if group["falls"]:
                    group_factor = learning_rate_factor(recipe.schedule, step, end, 0)
                group_factor = group_factor if step < end else 0.0
            if not has_started(group, step, steps_per_epoch):
                group_factor = 0.0
            group["lr"] = group["initial_lr"] * group_factor
            if "peak_decay" in group:  # AdamW multiplies it by the rate once more
                group["weight_decay"] = group["peak_decay"] * group_factor
    return factor
