"""Losses, optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.config.choices import ScheduleName
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.training.optim.optimizers import Lamb, Lars, Muon


def learning_rate_factor(
    name: ScheduleName, step: int, num_steps: int, warmup_steps: int, warmup_from: float = 0.0
) -> float:
    """Returns the share of the peak learning rate to use in `step` of `num_steps`.

    Linear warm-up first, from `warmup_from` on. Then constant; step: x 0.1 after 1/2 and again after 3/4 of the rest
    (He et al., 1512.03385, used 1/2 and 3/4 of 64k); cosine to zero (1608.03983); one-cycle: linear to zero
    (1708.07120).
    """
    if step < warmup_steps:
        return warmup_from + (1 - warmup_from) * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if name == "step":
        return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if name == "constant" else 1.0 - progress


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Returns the optimisers of the trainable parameters.

    Each group has a `name`, keeps its peak rate as `initial_lr`, and has `epochs`, for how long it is trained; 0 for
    all. Weight decay goes to matrices and kernels; biases and normalisation have `bias_weight_decay`. With muon,
    kernels of hidden convolutions are its, without decay, and the rest is Nesterov's.
    """
    whitening = {id(bias) for bias in whitening_biases(model)} if recipe.whitening_bias_epochs else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    members = {
        "kernels": [p for p in trained if p.ndim == 4],
        "matrices": [p for p in trained if p.ndim > 1 and p.ndim != 4],
        "biases and norms": [p for p in trained if p.ndim <= 1 and id(p) not in whitening],
        "whitening bias": [p for p in trained if id(p) in whitening],
    }
    rate, bias_rate = recipe.learning_rate, recipe.bias_rate or recipe.learning_rate
    groups: dict[str, dict[str, Any]] = {
        "kernels": {"lr": rate, "weight_decay": recipe.weight_decay},
        "matrices": {"lr": rate, "weight_decay": recipe.weight_decay},
        "biases and norms": {"lr": bias_rate, "weight_decay": recipe.bias_weight_decay},
        "whitening bias": {"lr": bias_rate, "weight_decay": recipe.bias_weight_decay},
    }
    for name, group in groups.items():
        group |= {"name": name, "params": members[name], "initial_lr": group["lr"]}
        group["epochs"] = recipe.whitening_bias_epochs if name == "whitening bias" else 0.0
    present = {name: group for name, group in groups.items() if members[name]}
    if recipe.optimizer != "muon":
        return [_torch_optimizer(recipe, list(present.values()))]
    if "kernels" not in present:
        raise RecipeError("optimizer='muon' needs a model with trainable convolutions; use adam or nesterov")
    kernels = present.pop("kernels")
    del kernels["weight_decay"]
    if "matrices" in present:
        present["matrices"]["lr"] = present["matrices"]["initial_lr"] = recipe.head_rate or rate
    rest = torch.optim.SGD(list(present.values()), lr=rate, momentum=recipe.rest_momentum, nesterov=True)
    return [Muon([kernels], rate, recipe.momentum), *([rest] if present else [])]


def _torch_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    rate, momentum = recipe.learning_rate, recipe.momentum
    fused: dict[str, Any] = {"fused": True} if all(p.is_cuda for group in groups for p in group["params"]) else {}
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(groups, lr=rate, **fused),
        "momentum": lambda: torch.optim.SGD(groups, lr=rate, momentum=momentum, **fused),
        "nesterov": lambda: torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, **fused),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=rate, alpha=0.9, momentum=momentum),
        "adam": lambda: torch.optim.Adam(groups, lr=rate, **fused),
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate, **fused),
        "lars": lambda: Lars(groups, lr=rate, momentum=momentum),
        "lamb": lambda: Lamb(groups, lr=rate),
    }
    return makers[recipe.optimizer]()


def whitening_biases(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable biases of the model's whitening layer, if it has one."""
    layer = getattr(model, "whitening", None)
    bias = getattr(layer, "bias", None)
    return [bias] if isinstance(bias, nn.Parameter) and bias.requires_grad else []


def set_learning_rates(
    optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int, num_steps: int, steps_per_epoch: int
) -> float:
    """Sets every group's rate for `step`, and returns the share of the peak that most of them have.

    A group that is trained for some epochs only has its schedule end there, and a rate of 0 from then on.
    """
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    factor = learning_rate_factor(recipe.schedule, step, num_steps, warmup_steps, recipe.warmup_from)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            share = factor
            if group["epochs"]:
                last = min(num_steps, round(group["epochs"] * steps_per_epoch))
                share = learning_rate_factor(recipe.schedule, step, last, 0) if step < last else 0.0
            group["lr"] = group["initial_lr"] * share
    return factor


def describe_groups(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Returns a line for each parameter group: what the report shows of it. Rates are peaks."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "optimizer": type(optimizer).__name__,
            "group": group["name"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "learning_rate": group["initial_lr"],
            "weight_decay": group.get("weight_decay", 0.0),
            "momentum": group.get("momentum", group.get("betas", (0.0,))[0]),
            "epochs": group["epochs"],
            "first": names[id(group["params"][0])],
        }
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
