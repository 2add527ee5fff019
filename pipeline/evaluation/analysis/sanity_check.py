"""Sanity check of explanations: do they depend on the weights of the network?

An explanation of the same images by the same network with random weights must look different (Adebayo et al., arXiv
1810.03292). An explanation that stays the same shows edges of the image, not what the network has learnt.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Maps = npt.NDArray[np.float32]
Method = Callable[[nn.Module, Tensor, Tensor], Maps]
_MAX_SIMILARITY = 0.5  # our choice: the paper compares by eye and by rank correlation, without a threshold


@dataclass(frozen=True)
class SanityCheck:
    """The similarity of the explanations of one method before and after weights are randomised.

    method: its name. random: "last layer" or "all layers". similarity: mean over the images of Spearman's rank
    correlation of the two maps, 1 for the same order. images: how many.
    """

    method: str
    random: str
    similarity: float
    images: int

    @property
    def depends(self) -> bool:
        """Whether the explanation depends on the randomised weights, as it should."""
        return self.similarity < _MAX_SIMILARITY


def check_sanity(net: nn.Module, images: Tensor, classes: Tensor, methods: dict[str, Method]) -> list[SanityCheck]:
    """Returns the check of each method, with the last layer and with all layers randomised.

    images: float32 [N, 3, S, S], normalised; classes: int64 [N], that are explained.
    """
    checks = []
    for name, method in methods.items():
        original = method(net, images, classes)
        for random, last_only in (("last layer", True), ("all layers", False)):
            other = method(randomise(net, last_only), images, classes)
            checks.append(SanityCheck(name, random, rank_correlation(original, other), len(images)))
    return checks


def randomise(net: nn.Module, last_only: bool, seed: int = 0) -> nn.Module:
    """Returns a copy whose last layer, or whose every layer, has its initial random weights.

    The state of torch's random numbers stays as it was.
    """
    twin = copy.deepcopy(net)
    layers = [module for module in twin.modules() if callable(getattr(module, "reset_parameters", None))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers[-1:] if last_only else layers:
            layer.reset_parameters()  # type: ignore[operator]
    return twin


def rank_correlation(one: Maps, other: Maps) -> float:
    """Returns the mean over N of Spearman's rank correlation, with 0 for a map that is constant.

    one, other: float [N, ...].
    """
    from scipy.stats import spearmanr

    found = []
    for a, b in zip(one.reshape(len(one), -1), other.reshape(len(other), -1), strict=True):
        constant = a.min() == a.max() or b.min() == b.max()
        found.append(0.0 if constant else float(spearmanr(a, b).statistic))
    return float(np.mean(found))
