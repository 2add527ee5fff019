"""The state of a run after a step, as tensors and JSON, and back.

Nothing else has to be saved: order, augmentation and dropout are functions of (seed, step), so there is no state of a
random generator.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.device.sharding import load_weights, spread_like
from pipeline.models.tensor_file import Tensors
from pipeline.models.weight_averages import LookAhead, WeightAverage

Average = WeightAverage | LookAhead
MODEL, AVERAGE = "model/", "average/"  # prefixes of the tensors' names in a checkpoint
_OPTIMIZER, _LOSS_SCALE, _LOSSES = "optimizer/", "loss_scale/", "losses"


@dataclass
class RunState:
    """Progress of a run."""

    epochs: int  # in all
    step: int = 0  # finished steps
    seconds: dict[str, float] = field(default_factory=dict)  # by stage (`stage_times.STAGES`)
    history: list[dict[str, Any]] = field(default_factory=list)  # training metrics, some twenty lines an epoch
    evaluations: list[dict[str, float]] = field(default_factory=list)  # step, loss, top1, top5
    quarantined: list[tuple[str, int]] = field(default_factory=list)  # (split, row) of each corrupt image left out
    skipped: list[int] = field(default_factory=list)  # steps without an update: loss or gradient not finite
    losses: list[float] = field(default_factory=list)  # of each step, mean over the global batch
    selection: str = ""  # digest of the rows that a filter keeps; "" without one

    def as_json(self) -> dict[str, Any]:
        """Returns all fields but the losses: there is one for each step, so they are stored as a tensor.

        Without a selection its digest is left out, too, as in checkpoints of earlier versions.
        """
        values = asdict(self)
        del values["losses"]
        if not self.selection:
            del values["selection"]
        return values


def collect(
    net: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: Average | None,
    state: RunState,
    loss_scale: Tensors | None = None,
) -> Tensors:
    """Returns the tensors of a run by name; those of optimisers by the name of their parameter.

    loss_scale: state of the scale of losses, by name, in float16. The tensors are references, not copies, except the
    losses.
    """
    tensors: Tensors = {f"{MODEL}{name}": tensor for name, tensor in net.state_dict().items()}
    if average is not None:
        tensors |= {f"{AVERAGE}{name}": tensor for name, tensor in average.values.items()}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                if value is not None:
                    tensors[f"{_OPTIMIZER}{number}/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
    tensors |= {f"{_LOSS_SCALE}{name}": tensor for name, tensor in (loss_scale or {}).items()}
    tensors[_LOSSES] = torch.tensor(state.losses, dtype=torch.float64)
    return tensors


def is_rank_local(name: str) -> bool:
    """Whether a tensor may differ between ranks: losses, and statistics of BatchNorm. Rank 0's count for the run."""
    return name == _LOSSES or name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")


def restore(
    saved: Checkpoint,
    net: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: Average | None,
    loss_scale: Tensors | None = None,
) -> RunState:
    """Loads a checkpoint into a network, its optimisers and its average, and returns the state of the run.

    loss_scale: state of the scale of losses, in float16, which is loaded, too, where the checkpoint has it.
    """
    load_state(saved.tensors, net, average)
    parameters = dict(net.named_parameters())
    for number, optimizer in enumerate(optimizers):
        _restore_optimizer(optimizer, parameters, select_prefix(saved.tensors, f"{_OPTIMIZER}{number}/"))
    for name, tensor in select_prefix(saved.tensors, _LOSS_SCALE).items():
        if loss_scale:
            loss_scale[name].copy_(tensor)
    values = {**saved.state, "quarantined": [(split, row) for split, row in saved.state["quarantined"]]}
    return RunState(**values, losses=saved.tensors[_LOSSES].tolist())


def load_state(tensors: Tensors, net: nn.Module, average: Average | None) -> None:
    """Loads the weights of a checkpoint into a network, and its average."""
    load_weights(net, select_prefix(tensors, MODEL))
    if average is not None:
        for name, tensor in select_prefix(tensors, AVERAGE).items():
            average.values[name].copy_(spread_like(tensor, average.values[name]))


def _restore_optimizer(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: Tensors) -> None:
    by_parameter: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # In the parameter's memory format (channels_last); a saved tensor is contiguous.
        is_like_it = tensor.shape == parameter.shape
        value = torch.zeros_like(parameter).copy_(spread_like(tensor, parameter)) if is_like_it else tensor.clone()
        by_parameter.setdefault(id(parameter), {})[key] = value
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {n: by_parameter[id(p)] for n, p in enumerate(held) if id(p) in by_parameter}
    optimizer.load_state_dict(packed)


def select_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the tensors whose names start with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
