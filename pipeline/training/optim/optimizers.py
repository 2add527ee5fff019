"""The optimisers that torch doesn't have: Muon for convolutions, LARS and LAMB.

Torch's own do the rest; `pipeline/training/optim/factory.py` makes all of them by name.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for convolution kernels.

    Momentum, then the update is replaced by the nearest orthogonal matrix, found by a quintic Newton-Schulz
    iteration on the kernel as a matrix [out, in*h*w]. Each kernel is first rescaled to Frobenius norm sqrt(out),
    as in the CIFAR-10 speed runs, so the learning rate is a step relative to the weights. torch.optim.Muon takes
    two-dimensional parameters only and doesn't rescale.
    """

    def __init__(self, params: Parameters, lr: float, momentum: float = 0.6) -> None:
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
    """matrix: float [M, N]. Returns about U V^T of its singular value decomposition U S V^T, same shape and dtype.

    float64 is computed as such, anything else in bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    transpose = x.shape[0] > x.shape[1]
    x = x.T if transpose else x
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transpose else x).to(matrix.dtype)


class Lars(torch.optim.Optimizer):
    """LARS (You et al., arXiv 1708.03888, algorithm 1), for large batches: momentum, each tensor with a rate of its
    own.

    d = g + weight_decay w;  rate = trust |w| / (|g| + weight_decay |w|);  v = momentum v + lr rate d;  w -= v.
    Groups without weight decay, which are biases and normalisation, take rate = 1, as is usual.
    """

    def __init__(
        self, params: Parameters, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Does one step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            decay = group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                update = weight.grad
                if decay:
                    size, slope = weight.norm(), weight.grad.norm()
                    rate = torch.where((size > 0) & (slope > 0), group["trust"] * size / (slope + decay * size), 1.0)
                    update = (weight.grad + decay * weight) * rate
                state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                weight.sub_(state["momentum"])


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., arXiv 1904.00962, algorithm 2): Adam with bias correction, each tensor scaled to its size.

    r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w;  w -= lr |w| / |r| r, with |w| / |r| = 1 where
    either is 0, and for groups without weight decay, which are biases and normalisation.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Does one step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            (first, second), decay = group["betas"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= {
                        "step": torch.tensor(0.0),
                        "mean": torch.zeros_like(weight),
                        "square": torch.zeros_like(weight),
                    }
                state["step"] += 1
                state["mean"].lerp_(weight.grad, 1 - first)
                state["square"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)
                step = int(state["step"])
                mean = state["mean"] / (1 - first**step)
                update = mean / ((state["square"] / (1 - second**step)).sqrt() + group["eps"])
                if decay:
                    update += decay * weight
                    size, length = weight.norm(), update.norm()
                    update *= torch.where((size > 0) & (length > 0), size / length, 1.0)
                weight.sub_(update, alpha=group["lr"])
