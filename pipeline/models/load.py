"""A trained network: found by the folder of a finished run or of one checkpoint, loaded without running any code."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_from_json
from pipeline.core.errors import CheckpointError
from pipeline.models import checkpoint
from pipeline.models.factory import recipe_model
from pipeline.models.run_state import AVERAGE, MODEL, select_prefix
from pipeline.models.tensor_file import read_tensors
from pipeline.storage import files as storage


@dataclass(frozen=True)
class TrainedModel:
    """A trained network: where it is, what it was trained by, its classes, and the SHA-256 of its weights.

    hold_out: share of train that it wasn't trained on. dataset_digest: of what it was trained on.
    """

    uri: str
    recipe: Recipe
    classes: tuple[str, ...]
    sha256: str
    dataset_digest: str
    hold_out: float

    @property
    def name(self) -> str:
        """What to call it: recipe and network."""
        return f"{self.recipe.name} ({self.recipe.model})"


def find_model(uri: str, field_name: str = "checkpoint") -> TrainedModel:
    """Returns the model of a finished run (RUN), or of one checkpoint (RUN/checkpoints/STEP).

    field_name: of what the URI was given for. Raises CheckpointError if there is none, or it is damaged.
    """
    uri = uri.rstrip("/")
    if checkpoint.is_checkpoint(uri):
        if not storage.exists(storage.join(uri, checkpoint.STATE_NAME)):
            raise CheckpointError(f"{field_name}={uri}: no such checkpoint; give RUN or one of RUN/checkpoints/")
        meta = checkpoint.read_state(uri)
        identity, classes = meta["state"]["identity"], meta["state"]["classes"]
        files = meta["parts"]
    else:
        place = storage.join(uri, checkpoint.OUTPUT_NAME)
        if not storage.exists(place):
            raise CheckpointError(
                f"{field_name}={uri}: no finished run ({checkpoint.OUTPUT_NAME}); give the folder of one, or "
                "RUN/checkpoints/STEP"
            )
        identity = storage.read_json(place)
        classes, files = identity["classes"], [checkpoint.MODEL_NAME]
    sha256 = hashlib.sha256()
    for name in files:
        sha256.update(storage.read_bytes(storage.join(uri, name)))
    recipe = recipe_from_json(identity["recipe"])
    return TrainedModel(
        uri, recipe, tuple(classes), sha256.hexdigest(), identity["dataset_digest"], identity["hold_out"]
    )


def check_classes(model: TrainedModel, classes: tuple[str, ...], field_name: str = "checkpoint") -> None:
    """Raises CheckpointError, with what differs, unless the model knows just these classes, in this order."""
    if model.classes != classes:
        different = sorted(set(model.classes) ^ set(classes)) or ["their order"]
        raise CheckpointError(
            f"{field_name}={model.uri}: knows {len(model.classes)} classes, the data set has {len(classes)} "
            f"(different: {', '.join(different[:4])}); give a run on the same classes"
        )


def load_net(model: TrainedModel) -> nn.Module:
    """Returns the network with its weights, averaged ones where it has them, on the CPU, for evaluation."""
    net = recipe_model(model.recipe, len(model.classes))
    if checkpoint.is_checkpoint(model.uri):
        tensors = checkpoint.load(model.uri).tensors
        weights = select_prefix(tensors, MODEL) | (select_prefix(tensors, AVERAGE) if model.recipe.ema_decay else {})
    else:
        weights = read_tensors(storage.join(model.uri, checkpoint.MODEL_NAME))
    net.load_state_dict(weights)
    return net.eval().to(memory_format=torch.channels_last)
