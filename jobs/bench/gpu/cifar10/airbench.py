"""The published fast training of CIFAR-10 (Jordan, arXiv 2404.00498, and its later version with Muon), in plain torch.

Written from the paper's description, for comparison; it shares no code with the package. Half precision on a GPU, all
images on the device, crops and flips once an epoch for all images, a loss that is summed, six test views.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.bench.gpu.clock import now

EPOCHS, BATCH_SIZE = 8, 2000
_WIDTHS = (64, 256, 256)
_BIAS_RATE, _HEAD_RATE, _MUON_RATE = 0.053, 0.67, 0.24
_WEIGHT_DECAY = 2e-6 * BATCH_SIZE
_WHITENING_BIAS_EPOCHS, _WHITENING_IMAGES = 3, 5000
_SMOOTHING = 0.2
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Images:
    """A split on the device. pixels: uint8 [N, 3, 32, 32]. labels: int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def normalised(self, dtype: torch.dtype) -> Tensor:
        """Returns the images as the network takes them."""
        mean, std = (torch.tensor(x, device=self.pixels.device).view(1, 3, 1, 1) for x in (_MEAN, _STD))
        scaled = (self.pixels.float() / 255 - mean) / std
        return scaled.to(dtype, memory_format=torch.channels_last)


class _Stage(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, num_out, 3, padding="same", bias=False) for n in (num_in, num_out))
        self.norms = nn.ModuleList(nn.BatchNorm2d(num_out, eps=1e-12, momentum=0.4) for _ in range(2))
        for conv in (self.first, self.second):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norms[0](F.max_pool2d(self.first(x), 2)))
        return F.gelu(self.norms[1](self.second(x)))


class Network(nn.Module):
    """The network of the version with Muon: whitening, three stages, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        inputs = (24, *_WIDTHS)
        self.stages = nn.Sequential(*[_Stage(a, b) for a, b in zip(inputs, _WIDTHS, strict=False)])
        self.head = nn.Linear(_WIDTHS[-1], 10, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def set_whitening(self, images: Tensor) -> None:
        """Sets the first layer to the directions in which patches of 2x2 pixels vary, scaled to unit variance."""
        patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        directions = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).flip(0)
        self.whiten.weight.data.copy_(torch.cat([directions, -directions]))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        x = F.max_pool2d(self.stages(F.gelu(self.whiten(images))), 3).flatten(1)
        logits: Tensor = self.head(x) / x.shape[1]
        return logits


class _Muon(torch.optim.Optimizer):
    def __init__(self, kernels: list[nn.Parameter]) -> None:
        super().__init__(kernels, {"lr": _MUON_RATE, "peak": _MUON_RATE, "epochs": EPOCHS})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for kernel in group["params"]:
                state = self.state[kernel]
                velocity = state.setdefault("velocity", torch.zeros_like(kernel)).mul_(0.6).add_(kernel.grad)
                direction = kernel.grad + 0.6 * velocity
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                kernel.add_(_newton_schulz(direction.reshape(len(kernel), -1)).view_as(kernel), alpha=-group["lr"])


def _newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    if tall := len(matrix) > matrix.shape[1]:
        x = x.T
    for _ in range(3):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return (x.T if tall else x).to(matrix.dtype)


def train(network: Network, called: nn.Module, data: Images, seed: int) -> None:
    """Trains a new network. called: the network, or what torch.compile makes of it."""
    torch.manual_seed(seed)
    images = data.normalised(next(network.parameters()).dtype)
    network.set_whitening(images[:_WHITENING_IMAGES])
    network.train()
    optimizers, size = _optimizers(network), min(BATCH_SIZE, len(images))
    per_epoch = len(images) // size
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    for epoch in range(EPOCHS):
        flips = (mirrored if epoch % 2 == 0 else ~mirrored)[:, None, None, None]
        shifted = _shifted(images)
        augmented = torch.where(flips, shifted.flip(-1), shifted)
        order = torch.randperm(len(images), device=images.device)
        for number in range(per_epoch):
            chosen = order[number * size : (number + 1) * size]
            logits = called(augmented[chosen])
            F.cross_entropy(logits, data.labels[chosen], label_smoothing=_SMOOTHING, reduction="sum").backward()  # type: ignore[no-untyped-call]
            _set_rates(optimizers, epoch * per_epoch + number, per_epoch)
            for optimizer in optimizers:
                optimizer.step()
            network.zero_grad(set_to_none=True)


def _optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Returns Muon for the kernels, and SGD for the rest, whose decay is the same share in each group."""
    biases = [module.bias for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    members = (
        ([network.whiten.bias], _BIAS_RATE, _WHITENING_BIAS_EPOCHS),
        (biases, _BIAS_RATE, EPOCHS),
        ([network.head.weight], _HEAD_RATE, EPOCHS),
    )
    groups = [
        {"params": params, "lr": rate, "peak": rate, "weight_decay": _WEIGHT_DECAY / rate, "epochs": epochs}
        for params, rate, epochs in members
    ]
    fused = network.head.weight.is_cuda
    kernels = [parameter for parameter in network.stages.parameters() if parameter.ndim == 4]
    return [_Muon(kernels), torch.optim.SGD(groups, lr=_BIAS_RATE, momentum=0.85, nesterov=True, fused=fused)]


def _set_rates(optimizers: list[torch.optim.Optimizer], step: int, per_epoch: int) -> None:
    """Sets the learning rates, which fall linearly to zero at the end of what each group is trained for."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * max(0.0, 1 - step / (group["epochs"] * per_epoch))


def _shifted(images: Tensor) -> Tensor:
    """Returns each image shifted by up to two pixels, its edge reflected."""
    padded, count = F.pad(images, (2, 2, 2, 2), "reflect"), len(images)
    down, right = (torch.randint(0, 5, (count,), device=images.device) for _ in range(2))
    out = torch.empty_like(images)
    for y in range(5):
        for x in range(5):
            here = (down == y) & (right == x)
            out[here] = padded[here][:, :, y : y + 32, x : x + 32]
    return out


@torch.no_grad()
def accuracy(network: nn.Module, called: nn.Module, data: Images) -> float:
    """Returns top-1 with six views: the image, and two copies shifted by a pixel, each with its mirror image."""
    network.eval()
    images = data.normalised(next(network.parameters()).dtype)
    right = torch.zeros((), device=images.device)
    for part, labels in zip(images.split(BATCH_SIZE), data.labels.split(BATCH_SIZE), strict=True):  # type: ignore[no-untyped-call]
        padded = F.pad(part, (1, 1, 1, 1), "reflect")
        shifted = [padded[:, :, n : n + 32, n : n + 32] for n in (0, 2)]
        both = [
            called(view.contiguous(memory_format=torch.channels_last))
            for each in (part, *shifted)
            for view in (each, each.flip(-1))
        ]
        logits = 0.5 * (both[0] + both[1]) / 2 + 0.5 * sum(both[2:]) / 4
        right += (logits.argmax(1) == labels).sum()
    return float(right) / len(images)


class Method:
    """The method on one device, run after run with the same network object, so that it is compiled once."""

    def __init__(self, train_data: Images, test_data: Images, compiled: bool = False) -> None:
        self._train, self._test, self._device = train_data, test_data, train_data.pixels.device
        self._network = self._new()
        self._called: nn.Module = torch.compile(self._network, dynamic=False) if compiled else self._network  # type: ignore[assignment]

    def _new(self) -> Network:
        network = Network().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._device.type == "cuda":
            network = network.half()
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.float()
        return network

    def run(self, seed: int) -> dict[str, float]:
        """Returns the seconds of training and of evaluation, and top-1."""
        torch.manual_seed(seed)
        self._network.load_state_dict(self._new().state_dict())
        start = now(self._device)
        train(self._network, self._called, self._train, seed)
        trained = now(self._device)
        top1 = accuracy(self._network, self._called, self._test)
        return {"train_seconds": trained - start, "evaluate_seconds": now(self._device) - trained, "top1": top1}
