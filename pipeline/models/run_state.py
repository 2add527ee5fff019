"""What a run is at a step, as tensors and JSON, and back: all that the rest of it depends on.

Nothing else is kept: order, augmentation and dropout are computed from (seed, step), so there is no generator to save.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tensor_file import Tensors
from pipeline.models.weight_averages import LookAhead, WeightAverage

Average = WeightAverage | LookAhead
MODEL, AVERAGE, _OPTIMIZER, _LOSSES = "model/", "average/", "optimizer/", "losses"


@dataclass
class RunState:
    """What was done so far.

    seconds: by stage (`timing.STAGES`); quarantined: (split, row) of each image that was left out; skipped: steps
    without an update, because loss or gradients weren't finite; losses: of each step, the mean over the global batch.
    """

    epochs: int
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    quarantined: list[tuple[str, int]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything but the losses, which are many: they go with the tensors."""
        values = asdict(self)
        del values["losses"]
        return values


def collect(
    net: nn.Module, optimizers: list[torch.optim.Optimizer], average: Average | None, state: RunState
) -> Tensors:
    """Returns references to the tensors of a run by name; of optimisers by parameter."""
    tensors: Tensors = {f"{MODEL}{name}": tensor for name, tensor in net.state_dict().items()}
    if average is not None:
        tensors |= {f"{AVERAGE}{name}": tensor for name, tensor in average.values.items()}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                if value is not None:
                    tensors[f"{_OPTIMIZER}{number}/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
    tensors[_LOSSES] = torch.tensor(state.losses, dtype=torch.float64)
    return tensors


def is_rank_local(name: str) -> bool:
    """Whether ranks may hold different values: running statistics, and what is counted. Rank 0's are the run's."""
    return name == _LOSSES or name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")


def restore(
    saved: Checkpoint, net: nn.Module, optimizers: list[torch.optim.Optimizer], average: Average | None
) -> RunState:
    """Puts a checkpoint into a network, its optimisers and its average, and returns the state."""
    net.load_state_dict(select_prefix(saved.tensors, MODEL))
    if average is not None:
        for name, tensor in select_prefix(saved.tensors, AVERAGE).items():
            average.values[name].copy_(tensor)
    parameters = dict(net.named_parameters())
    for number, optimizer in enumerate(optimizers):
        _restore_optimizer(optimizer, parameters, select_prefix(saved.tensors, f"{_OPTIMIZER}{number}/"))
    values = {**saved.state, "quarantined": [(split, row) for split, row in saved.state["quarantined"]]}
    return RunState(**values, losses=saved.tensors[_LOSSES].tolist())


def _restore_optimizer(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: Tensors) -> None:
    by_parameter: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        like = torch.zeros_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor.clone()
        by_parameter.setdefault(id(parameter), {})[key] = like  # in the parameter's memory format
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {n: by_parameter[id(p)] for n, p in enumerate(held) if id(p) in by_parameter}
    optimizer.load_state_dict(packed)


def select_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
