"""Trained networks: found by the URI of a finished run or of one checkpoint, and loaded without running any code."""

import hashlib
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.models import checkpoint
from pipeline.models.device.architecture import check_architecture
from pipeline.models.factory import recipe_model
from pipeline.models.run_state import AVERAGE, MODEL, select_prefix
from pipeline.models.tensor_file import read_tensors
from pipeline.storage import files
from pipeline.storage.places import nearest

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network that is stored somewhere. Pass it to `load_net` for the network itself."""

    uri: str  # of the run, or of one of its checkpoints
    recipe: Recipe  # that it was trained with
    classes: tuple[str, ...]  # names, by the index of the logit
    sha256: str  # of the files with its weights, in hexadecimal
    dataset_digest: str  # of the data set it was trained on
    hold_out: float  # share of train that it wasn't trained on

    @property
    def name(self) -> str:
        """Name for people: recipe and network."""
        return f"{self.recipe.name} ({self.recipe.model})"


def find_model(uri: str, field_name: str = "checkpoint") -> TrainedModel:
    """Returns the model of a finished run (RUN), or of one checkpoint (RUN/checkpoints/STEP).

    field_name: the setting that `uri` was given for, for the message. Raises CheckpointError if there is no such run or
    checkpoint, or it is damaged.
    """
    uri = uri.rstrip("/")
    try:
        return _find_model(uri, field_name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{field_name}={uri}: a file is missing ({error}); give another run") from error


def _find_model(uri: str, field_name: str) -> TrainedModel:
    if checkpoint.is_checkpoint(uri):
        if not files.exists(files.join(uri, checkpoint.STATE_NAME)):
            raise CheckpointError(
                f"{field_name}={uri}: no such checkpoint; give RUN or one of RUN/checkpoints/{nearest(uri)}"
            )
        meta = checkpoint.read_state(uri)
        state, names = meta["state"], meta["parts"]
        try:
            found = msgspec.convert({**state["identity"], "classes": state["classes"]}, checkpoint.Output)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{field_name}={uri}: {checkpoint.STATE_NAME} is damaged, or no file of this project ({error!r}); give "
                "another checkpoint"
            ) from error
    else:
        output = files.join(uri, checkpoint.OUTPUT_NAME)
        if not files.exists(output):
            raise CheckpointError(
                f"{field_name}={uri}: no finished run ({checkpoint.OUTPUT_NAME}); give the folder of one, or "
                f"RUN/checkpoints/STEP{nearest(uri)}"
            )
        found, names = checkpoint.read_output(uri), [checkpoint.MODEL_NAME]
    sha256 = hashlib.sha256()
    for name in names:
        sha256.update(files.read_bytes(files.join(uri, name)))
    try:
        recipe = recipe_from_json(found.recipe)
    except RecipeError as error:
        raise CheckpointError(f"{field_name}={uri}: its recipe can't be read: {error}") from error
    return TrainedModel(uri, recipe, found.classes, sha256.hexdigest(), found.dataset_digest, found.hold_out)


def check_classes(model: TrainedModel, classes: tuple[str, ...], field_name: str = "checkpoint") -> None:
    """Raises CheckpointError, which lists the differences, unless the model has exactly these classes in this order."""
    if model.classes != classes:
        different = sorted(set(model.classes) ^ set(classes)) or ["their order"]
        raise CheckpointError(
            f"{field_name}={model.uri}: knows {len(model.classes)} classes, the data set has {len(classes)} "
            f"(different: {', '.join(different[:4])}); give a run on the same classes"
        )


def load_net(model: TrainedModel, device: torch.device = _CPU) -> nn.Module:
    """Returns the network on `device`, in evaluation mode and channels_last.

    It takes normalised images, float32 [N, 3, S, S], and returns logits [N, number of classes]. Its weights are the
    exponential average where the recipe has one (`ema_decay`). Raises ClusterError if the installed torch has no code
    for the GPU `device`.
    """
    check_architecture(device)
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and the caller's draws must stay theirs
        net = recipe_model(model.recipe, len(model.classes))
    if checkpoint.is_checkpoint(model.uri):
        tensors = checkpoint.load(model.uri).tensors
        weights = select_prefix(tensors, MODEL)
        if model.recipe.ema_decay:  # an average has no integer buffers: those are the network's
            weights |= select_prefix(tensors, AVERAGE)
    else:
        weights = read_tensors(files.join(model.uri, checkpoint.MODEL_NAME))
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:  # lists every tensor
        raise CheckpointError(f"{model.uri}: its weights don't fit its recipe; give another run") from error
    return net.eval().to(device).to(memory_format=torch.channels_last)
