"""Optimisers that torch doesn't have: Muon for convolutions, LARS and LAMB.

`docs/dependencies.md` says why LARS and LAMB aren't timm's. `pipeline/training/optim/factory.py` makes all optimisers
by name.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    For a kernel w [out, in, h, w], its gradient g and the learning rate lr:

        v = momentum v + g;  u = g + momentum v  (Nesterov)
        w = sqrt(out) w / |w|  (Frobenius norm)
        w = w - lr orthogonalised(u as a matrix [out, in h w])

    Rescaling w, as in the CIFAR-10 speed runs (arXiv 2404.00498's repository), makes lr a step relative to the weights.
    torch.optim.Muon takes two-dimensional parameters only and doesn't rescale.
    """

    def __init__(self, params: Parameters, lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient. closure: ignored."""
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
    """Returns approximately U V^T, where U S V^T is the singular value decomposition of `matrix`.

    matrix: float [M, N]. The result has its shape and dtype. float64 is computed in float64, every other dtype in
    bfloat16. Each Newton-Schulz iteration is X = a X + (b X X^T + c (X X^T)^2) X, with the coefficients of Jordan's
    page: they push small singular values up fast, and leave all between about 0.7 and 1.2 instead of at 1. Jordan uses
    5 iterations for language models and 3 for CIFAR-10.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x / (x.norm() + 1e-7)  # the iteration converges for singular values up to 1
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x  # the smaller of the two products X X^T and X^T X
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)


class Lars(torch.optim.Optimizer):
    """LARS, for large batches: momentum, with a learning rate of its own for each tensor.

    You et al., arXiv 1708.03888, algorithm 1, for weights w and gradients g:

        rate = trust |w| / (|g| + weight_decay |w|)
        v = momentum v + lr rate (g + weight_decay w)
        w = w - v

    Groups without weight decay, which are biases and normalisation, have rate = 1, as is usual. rate is 1, too, where
    |w| or |g| is 0. trust: the paper's eta.
    """

    def __init__(
        self, params: Parameters, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient. closure: ignored."""
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
    """LAMB, for large batches: Adam, with the update of each tensor scaled to the size of its weights.

    You et al., arXiv 1904.00962, algorithm 2, with bias correction and phi(z) = z, for weights x, gradients g and
    step t:

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay x
        x = x - lr (|x| / |r|) r

    |x| / |r| counts as 1 where either is 0, and for groups without weight decay, which are biases and normalisation.
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
        """Updates all parameters that have a gradient. closure: ignored."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        (first, second), decay, state = group["betas"], group["weight_decay"], self.state[weight]
        if not state:
            # The step is counted for each tensor, and not for the group, so that a checkpoint holds it.
            state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
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
