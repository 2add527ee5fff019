"""Optimisers by name, with the parameter groups of a recipe."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.training.optim.found_inf import honour_found_inf
from pipeline.training.optim.layer_numbers import layer_numbers
from pipeline.training.optim.optimizers import Lamb, Lars, Muon

Group = dict[str, Any]


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Returns the optimisers of a model's trainable parameters: one, or with "muon" two.

    Each parameter group has, beside torch's entries: name; initial_lr, its peak rate; epochs, how long it is trained, 0
    for the whole run; falls, whether its rate falls to zero over them; of recipes that freeze layers, starts, the epoch
    before which its rate is 0; peak_decay, where the weight decay falls with the rate. Weight decay applies to matrices
    and kernels; biases and normalisation have `bias_weight_decay`, which is normally 0 (He et al., arXiv 1812.01187,
    section 3.1). "muon" updates the kernels of convolutions, without weight decay, and SGD with Nesterov momentum the
    rest. All heed `found_inf` (`found_inf.py`). Raises RecipeError if "muon" has no kernels to update.
    """
    groups = parameter_groups(model, recipe)
    if recipe.corrected_weight_decay:
        groups = {name: {**group, "peak_decay": group["weight_decay"]} for name, group in groups.items()}
    if recipe.layer_decay < 1 or recipe.frozen_epochs or recipe.thaw_epochs:
        groups = _by_layer(model, groups, recipe)
    if recipe.optimizer != "muon":
        return [honour_found_inf(_single_optimizer(recipe, list(groups.values())))]
    if "kernels" not in groups:
        raise RecipeError("optimizer='muon' needs a model with trainable convolutions; use adam or nesterov")
    kernels = groups.pop("kernels")
    del kernels["weight_decay"]
    if "matrices" in groups:
        groups["matrices"]["lr"] = groups["matrices"]["initial_lr"] = recipe.head_rate or recipe.learning_rate
    optimizers: list[torch.optim.Optimizer] = [Muon([kernels], recipe.learning_rate, recipe.momentum)]
    if rest := list(groups.values()):
        momentum = recipe.rest_momentum
        sgd = torch.optim.SGD(rest, lr=recipe.learning_rate, momentum=momentum, nesterov=True, **_fused(rest))
        optimizers.append(sgd)
    return [honour_found_inf(optimizer) for optimizer in optimizers]


def parameter_groups(model: nn.Module, recipe: Recipe) -> dict[str, Group]:
    """Returns the groups of the trainable parameters that aren't empty, by name: kernels, matrices, biases and norms,
    whitening bias.
    """
    apart = recipe.whitening_bias_epochs or recipe.whitening_bias_rate
    whitening = {id(bias) for bias in _whitening_biases(model)} if apart else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, bias_rate = recipe.learning_rate, recipe.bias_rate or recipe.learning_rate
    decay, bias_decay = recipe.weight_decay, recipe.bias_weight_decay
    whitening_rate = recipe.whitening_bias_rate or bias_rate
    whitening_decay = bias_decay * (bias_rate / whitening_rate)
    members: dict[str, tuple[list[nn.Parameter], float, float]] = {
        "kernels": ([p for p in trained if p.ndim == 4], rate, decay),
        "matrices": ([p for p in trained if p.ndim > 1 and p.ndim != 4], rate, decay),
        "biases and norms": ([p for p in trained if p.ndim <= 1 and id(p) not in whitening], bias_rate, bias_decay),
        "whitening bias": ([p for p in trained if id(p) in whitening], whitening_rate, whitening_decay),
    }
    return {
        name: {
            "lr": group_rate,
            "weight_decay": group_decay,
            "name": name,
            "params": parameters,
            "initial_lr": group_rate,
            "epochs": recipe.whitening_bias_epochs if name == "whitening bias" else 0.0,
            "falls": not recipe.whitening_bias_rate,
        }
        for name, (parameters, group_rate, group_decay) in members.items()
        if parameters
    }


def _by_layer(model: nn.Module, groups: dict[str, Group], recipe: Recipe) -> dict[str, Group]:
    """Returns the groups in parts, one for each layer; from the last layer on, rates fall by `layer_decay`.

    Where layers are frozen at first, a part says in which epoch it "starts".
    """
    decay, frozen, thaw = recipe.layer_decay, recipe.frozen_epochs, recipe.thaw_epochs
    layers = layer_numbers(model)
    number_of = {id(parameter): layers[name] for name, parameter in model.named_parameters()}
    last = max(layers.values())
    parts: dict[str, Group] = {}
    for name, group in groups.items():
        for layer in sorted({number_of[id(parameter)] for parameter in group["params"]}):
            rate = group["initial_lr"] * decay ** (last - layer)
            members = [parameter for parameter in group["params"] if number_of[id(parameter)] == layer]
            label = f"{name}, layer {layer}"
            parts[label] = {**group, "name": label, "params": members, "lr": rate, "initial_lr": rate}
            if frozen or thaw:
                above = (last - 1 - layer) / max(1, last - 1)  # 0 for the layer below the last one, 1 for the first
                parts[label]["starts"] = frozen + thaw * above if layer < last else 0.0
    return parts


def describe_groups(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Returns a row of the report's table for each parameter group. Learning rates are peaks."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "optimizer": type(optimizer).__name__,
            "group": group["name"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "learning_rate": group["initial_lr"],
            "weight_decay": group.get("peak_decay", group.get("weight_decay", 0.0)),
            "momentum": group.get("momentum", group.get("betas", (0.0,))[0]),
            "epochs": group["epochs"],
            "first": names[id(group["params"][0])],
        }
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def _single_optimizer(recipe: Recipe, groups: list[Group]) -> torch.optim.Optimizer:
    rate, momentum, fused = recipe.learning_rate, recipe.momentum, _fused(groups)
    # On a GPU the step counter has to be there, too, or `found_inf` couldn't undo it.
    on_device: dict[str, Any] = {"capturable": True} if fused else {}
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(groups, lr=rate, **fused),
        "momentum": lambda: torch.optim.SGD(groups, lr=rate, momentum=momentum, **fused),
        "nesterov": lambda: torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, **fused),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=rate, alpha=0.9, momentum=momentum, **on_device),
        "adam": lambda: torch.optim.Adam(groups, lr=rate, **fused),
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate, **fused),
        "lars": lambda: Lars(groups, lr=rate, momentum=momentum),
        "lamb": lambda: Lamb(groups, lr=rate, trust_clip=recipe.trust_clip),
    }
    return makers[recipe.optimizer]()


def _fused(groups: list[Group]) -> dict[str, Any]:
    """Returns the argument that makes torch's optimisers launch one GPU kernel for all tensors of a group.

    Not on CPUs, where it could change the bits of a run.
    """
    return {"fused": True} if all(p.is_cuda for group in groups for p in group["params"]) else {}


def _whitening_biases(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable bias of the model's whitening layer, if it has one."""
    layer = getattr(model, "whitening", None)
    bias = getattr(layer, "bias", None)
    return [bias] if isinstance(bias, nn.Parameter) and bias.requires_grad else []
