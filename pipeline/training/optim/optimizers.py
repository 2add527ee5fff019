"""Optimisers that torch doesn't have: Muon for convolutions, LARS and LAMB.

`docs/dependencies.md` says why LARS and LAMB aren't timm's. `pipeline/training/optim/factory.py` makes all optimisers
by name.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.optim.per_tensor import per_tensor

_NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # a, b, c

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
            kernels, slopes = _with_gradients(group)
            if not kernels:
                continue
            momenta = _state(self, kernels, "momentum")
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, slopes)
            updates = torch._foreach_add(slopes, momenta, alpha=group["momentum"])
            factors = torch._foreach_reciprocal(torch._foreach_norm(kernels))
            torch._foreach_mul_(factors, [len(kernel) ** 0.5 for kernel in kernels])
            torch._foreach_mul_(kernels, per_tensor(self, kernels, torch.stack(list(factors))))
            torch._foreach_add_(kernels, _orthogonalised_kernels(list(updates)), alpha=-group["lr"])


def _orthogonalised_kernels(updates: list[Tensor]) -> list[Tensor]:
    """Returns `orthogonalised` of each kernel [out, in, h, w] as a matrix [out, in h w]; those of one shape at once.

    The results are channels_last, as the kernels of a network in training.
    """
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for place, update in enumerate(updates):
        places[update.shape].append(place)
    results = list(updates)
    for shape, those in places.items():
        # Stacked as [out, h, w, in], the order in memory: all kernels of a shape are one copy there, and one back.
        stacked = torch.stack([updates[place].permute(0, 2, 3, 1) for place in those])
        matrices = orthogonalised(stacked.permute(0, 1, 4, 2, 3).flatten(2))
        kernels = matrices.view(-1, *shape).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        for place, kernel in zip(those, kernels.unbind(), strict=True):
            results[place] = kernel
    return results


def orthogonalised(matrix: Tensor, num_iterations: int = 3) -> Tensor:
    """Returns approximately U V^T, where U S V^T is the singular value decomposition of `matrix`.

    matrix: float [..., M, N]. The result has its shape and dtype. float64 is computed in float64, every other dtype in
    bfloat16. Each Newton-Schulz iteration is X = a X + (b X X^T + c (X X^T)^2) X, with the coefficients of Jordan's
    page: they push small singular values up fast, and leave all between about 0.7 and 1.2 instead of at 1. Jordan uses
    5 iterations for language models and 3 for CIFAR-10.
    """
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # the iteration converges for singular values up to 1
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x  # the smaller of the two products X X^T and X^T X
    iterate = newton_schulz_in_products if x.is_cuda and x.ndim == 3 else newton_schulz
    for _ in range(num_iterations):
        x = iterate(x)
    return (x.mT if is_tall else x).to(matrix.dtype)


def newton_schulz(x: Tensor) -> Tensor:
    """Returns a X + (b X X^T + c (X X^T)^2) X. x: float [..., M, N]."""
    a, b, c = _NEWTON_SCHULZ
    gram = x @ x.mT
    return a * x + (b * gram + c * gram @ gram) @ x


def newton_schulz_in_products(x: Tensor) -> Tensor:
    """Returns `newton_schulz` of matrices [N, M, K] in three products instead of eight operations.

    They round less often, so the last bits differ: CPUs keep the other form.
    """
    a, b, c = _NEWTON_SCHULZ
    gram = torch.bmm(x, x.mT)
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)


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
            weights, slopes = _with_gradients(group)
            if not weights:
                continue
            momenta, updates, decay = _state(self, weights, "momentum"), slopes, group["weight_decay"]
            if decay:
                size, slope = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(slopes))
                rate = torch.where((size > 0) & (slope > 0), group["trust"] * size / (slope + decay * size), 1.0)
                updates = list(torch._foreach_mul(weights, decay))
                torch._foreach_add_(updates, slopes)
                torch._foreach_mul_(updates, per_tensor(self, weights, rate))
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates, alpha=group["lr"])
            torch._foreach_sub_(weights, momenta)


class Lamb(torch.optim.Optimizer):
    """LAMB, for large batches: Adam, with the update of each tensor scaled to the size of its weights.

    You et al., arXiv 1904.00962, algorithm 2, with bias correction and phi(z) = z, for weights x, gradients g and
    step t:

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay x
        x = x - lr (|x| / |r|) r

    |x| / |r| counts as 1 where either is 0, and for groups without weight decay, which are biases and normalisation.
    trust_clip: whether it is 1 at most (Fong et al., arXiv 2011.13584).
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        trust_clip: bool = False,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": 1e-6, "weight_decay": weight_decay, "trust_clip": trust_clip}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient. closure: ignored."""
        for group in self.param_groups:
            weights, slopes = _with_gradients(group)
            if not weights:
                continue
            updates, decay = self._adam(weights, slopes, group), group["weight_decay"]
            if decay:
                torch._foreach_add_(updates, torch._foreach_mul(weights, decay))
                size, length = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
                ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
                ratio = ratio.clamp(max=1.0) if group["trust_clip"] else ratio
                torch._foreach_mul_(updates, per_tensor(self, weights, ratio))
            torch._foreach_sub_(weights, updates, alpha=group["lr"])

    def _adam(self, weights: list[Tensor], slopes: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Updates the state, and returns Adam's update of each tensor, before the learning rate."""
        first, second = group["betas"]
        # Counted for each tensor, and not for the group, so that a checkpoint holds it; on the device, where a step
        # that isn't taken isn't counted.
        steps = _state(self, weights, "step", scalar=True)
        means, squares = _state(self, weights, "mean"), _state(self, weights, "square")
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, slopes, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, slopes, slopes, value=1 - second)
        counts = torch.stack(steps).double()
        updates, denominators = (
            torch._foreach_div(values, per_tensor(self, weights, (1 - beta**counts).to(weights[0].dtype)))
            for values, beta in ((means, first), (squares, second))
        )
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_div_(updates, denominators)
        return list(updates)


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the parameters of a group that have gradients, and these."""
    weights = [weight for weight in group["params"] if weight.grad is not None]
    return weights, [weight.grad for weight in weights]


def _state(optimizer: torch.optim.Optimizer, weights: list[Tensor], name: str, scalar: bool = False) -> list[Tensor]:
    """Returns the entry `name` of each parameter's state, which begins as zeros: float32 if it is a scalar."""
    for weight in weights:
        state = optimizer.state[weight]
        if name not in state:
            state[name] = torch.zeros((), device=weight.device) if scalar else torch.zeros_like(weight)
        elif scalar and state[name].device != weight.device:  # after a checkpoint, once
            state[name] = state[name].to(weight.device)
    return [optimizer.state[weight][name] for weight in weights]
