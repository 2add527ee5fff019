"""Networks for small images. Each returns logits."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SeedCnn(nn.Module):
    """The CNN of TensorFlow's CIFAR-10 tutorial: three 3x3 convolutions of 32, 64 and 64 channels, two linear layers.

    A 2x2 max-pooling follows the first two convolutions, which are unpadded as is Keras's default. The tutorial's
    network ends in a softmax and is trained with `from_logits=True`, which applies softmax twice and shrinks the
    gradient; this network returns logits.
    """

    def __init__(self, num_classes: int, image_size_px: int = 32) -> None:
        super().__init__()
        side = ((image_size_px - 2) // 2 - 2) // 2 - 2
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * side * side, 64), nn.ReLU(), nn.Linear(64, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # as Keras; the tutorial's 10 epochs rest on it
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S]. Returns logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class _Block(nn.Module):
    """A convolution with pooling, then a residual convolution.

    Pooling comes before BatchNorm and ReLU, because elementwise work is what costs on a CPU.
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)), inplace=True)
        return x + F.relu(self.norm2(self.conv2(x)), inplace=True)


class Whitened(nn.Module):
    """Base of networks whose first layer whitens patches of 2x2 pixels, with frozen weights set from training images.

    As in Page's and Jordan's CIFAR-10 speed runs (arXiv 2404.00498, section 3.2): 12 directions and their negatives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad_(False)

    def fit_whitening(self, images: Tensor) -> None:
        """Sets the first layer's weights to the whitening of the images' patches.

        images: float [N, 3, S, S], normalised. Directions are the eigenvectors of the patches' covariance, each divided
        by the square root of its eigenvalue + 5e-4, which damps directions without signal.
        """
        patches = F.unfold(images.float(), 2).permute(0, 2, 1).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + 5e-4).sqrt()).T.flip(0)
        # The sign of an eigenvector is arbitrary. Fix it: the same data must give the same network on any machine.
        kernels = kernels * kernels.gather(1, kernels.abs().argmax(1, keepdim=True)).sign()
        self.whitening.weight.data.copy_(torch.cat([kernels, -kernels]).reshape(24, 3, 2, 2))


class FastResNet(Whitened):
    """A small ResNet for 32-pixel images on a CPU: 32 million multiply-adds, most of them in wide convolutions."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (32, 128, 128)) -> None:
        super().__init__()
        self.whitening.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*[_Block(i, o) for i, o in pairwise((24, *widths))])
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S]. Returns logits [N, num_classes]."""
        x = self.blocks(F.relu(self.whitening(images), inplace=True))
        logits: Tensor = self.classifier(x.amax(dim=(2, 3))) / 8
        return logits


class _Group(nn.Module):
    """A convolution with pooling, then one or two more convolutions; the third is a residual one (airbench96).

    All start as the identity on their first outputs (Dirac), and BatchNorm's scales stay 1.
    """

    def __init__(self, num_in: int, num_out: int, convolutions: int, norm_momentum: float) -> None:
        super().__init__()
        widths = [num_in, *[num_out] * convolutions]
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths)])
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(num_out, eps=1e-12, momentum=norm_momentum) for _ in range(convolutions)]
        )
        for conv in self.convs:
            nn.init.dirac_(conv.weight.data[: conv.weight.shape[1]])  # type: ignore[index]
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        y = self.norms[1](self.convs[1](x))
        if len(self.convs) == 3:
            y = self.norms[2](self.convs[2](F.gelu(y))) + x
        return F.gelu(y)


class Airbench(Whitened):
    """The network of Jordan's CIFAR-10 speed runs (arXiv 2404.00498 and its repository), for images of 32 pixels.

    widths: channels of the three groups. convolutions: of each group, 2 or 3; the third is residual. norm_momentum: of
    BatchNorm. scale: of the logits; a whitening bias then starts at 0, and the last layer as torch makes it. The
    defaults are those of the 94 % record in its version for Muon: a last layer of unit variance, and logits divided by
    its inputs. whitening_bias: whether the bias of the first layer is trained.
    """

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...] = (64, 256, 256),
        convolutions: int = 2,
        norm_momentum: float = 0.4,
        scale: float | None = None,
        whitening_bias: bool = True,
    ) -> None:
        super().__init__()
        groups = [_Group(i, o, convolutions, norm_momentum) for i, o in pairwise((24, *widths))]
        self.groups = nn.Sequential(*groups)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = 1 / widths[-1] if scale is None else scale
        self.whitening.bias.requires_grad_(whitening_bias)  # type: ignore[union-attr]
        if scale is None:
            self.head.weight.data /= self.head.weight.data.std()
        else:
            nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, 32, 32]. Returns logits [N, num_classes]."""
        x = F.max_pool2d(self.groups(F.gelu(self.whitening(images))), 3)
        logits: Tensor = self.head(x.flatten(1)) * self.scale
        return logits
