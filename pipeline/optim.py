"""Losses, optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.recipes import LossName, OptimizerName, ScheduleName


def sample_losses(name: LossName, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """logits: float [N, C], never softmaxed before; labels: int64 [N]. Returns float [N], a loss for each sample.

    cross-entropy: -sum_c q_c log softmax(logits)_c. mse: mean over classes of (softmax(logits) - q)^2, the
    tutorial's alternative. q is the one-hot target, smoothed as (1-a) onehot + a/C (Szegedy et al., 1512.00567).
    """
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    num_classes = logits.shape[1]
    target = F.one_hot(labels, num_classes).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
    return (logits.softmax(dim=1) - target).square().mean(dim=1)


def learning_rate_factor(name: ScheduleName, step: int, num_steps: int, warmup_steps: int) -> float:
    """Returns the share of the peak learning rate to use in `step` of `num_steps`.

    Linear warm-up first. Then constant; step: x 0.1 after 1/2 and again after 3/4 of the rest (He et al.,
    1512.03385, used 1/2 and 3/4 of 64k); cosine to zero (1608.03983); one-cycle: linear to zero (1708.07120).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if name == "step":
        return 0.1 ** sum(progress >= milestone for milestone in (0.5, 0.75))
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if name == "constant" else 1.0 - progress


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for convolution kernels.

    Momentum, then the update is replaced by the nearest orthogonal matrix, found by a quintic Newton-Schulz
    iteration on the kernel as a matrix [out, in*h*w]. Each kernel is first rescaled to Frobenius norm sqrt(out),
    as in the CIFAR-10 speed runs, so the learning rate is a step relative to the weights. torch.optim.Muon takes
    two-dimensional parameters only and doesn't rescale.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Does one step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["momentum"] = torch.zeros_like(kernel)
                state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
                update = kernel.grad.add(state["momentum"], alpha=group["momentum"])
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                kernel.add_(orthogonalised(update.flatten(1)).view_as(update), alpha=-group["lr"])


def orthogonalised(matrix: Tensor, num_iterations: int = 3) -> Tensor:
    """matrix: float [M, N]. Returns about U V^T of its singular value decomposition U S V^T, same shape and dtype."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    transpose = x.shape[0] > x.shape[1]
    x = x.T if transpose else x
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transpose else x).to(matrix.dtype)


def make_optimizers(
    model: nn.Module, name: OptimizerName, learning_rate: float, momentum: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Returns the optimisers of the trainable parameters; each group keeps its peak rate as `initial_lr`.

    Weight decay goes to matrices and kernels, never to biases and BatchNorm's scales. With muon, kernels of
    hidden convolutions are its, and the rest is Nesterov's with a rate of its own: 0.2, linear layers 2.0.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizers: list[torch.optim.Optimizer]
    if name == "muon":
        kernels = [parameter for parameter in weights if parameter.ndim == 4]
        if not kernels:
            raise RecipeError("optimizer='muon' needs a model with trainable convolutions; use adam or nesterov")
        rest = [
            {
                "params": [parameter for parameter in weights if parameter.ndim != 4],
                "lr": 2.0,
                "weight_decay": weight_decay,
            },
            {"params": others, "lr": 0.2},
        ]
        optimizers = [
            Muon(kernels, learning_rate, momentum),
            torch.optim.SGD([group for group in rest if group["params"]], lr=0.2, momentum=0.9, nesterov=True),
        ]
    else:
        groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "sgd": lambda: torch.optim.SGD(groups, lr=learning_rate),
            "momentum": lambda: torch.optim.SGD(groups, lr=learning_rate, momentum=momentum),
            "nesterov": lambda: torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True),
            "rmsprop": lambda: torch.optim.RMSprop(groups, lr=learning_rate, alpha=0.9, momentum=momentum),
            "adam": lambda: torch.optim.Adam(groups, lr=learning_rate),
            "adamw": lambda: torch.optim.AdamW(groups, lr=learning_rate),
        }
        optimizers = [makers[name]()]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
