"""Loads the weights of a file into a network."""

import io

import torch
from torch import nn

from pipeline.core.errors import CheckpointError
from pipeline.models.tensor_file import Tensors, read_tensors
from pipeline.storage import files


def load_pretrained(model: nn.Module, uri: str) -> None:
    """Loads the weights of a .safetensors file, or of a .pt file that contains no code, into `model`.

    If the last layer has another number of classes, its weights are left as they were initialised. Raises
    CheckpointError if anything else doesn't match.
    """
    weights = _read_weights(uri)
    own = model.state_dict()
    reshaped = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    last_module = list(own)[-1].rpartition(".")[0]
    head = [name for name in own if name.rpartition(".")[0] == last_module]
    if missing or unknown or not set(reshaped) <= set(head):
        wrong = [f"{name}: missing" for name in missing] + [f"{name}: unknown" for name in unknown]
        wrong += [f"{name}: {tuple(weights[name].shape)} for {tuple(own[name].shape)}" for name in reshaped]
        raise CheckpointError(
            f"pretrained={uri}: doesn't fit the model ({'; '.join(wrong[:3])}); give weights of the same model"
        )
    # A bias may fit by chance where its matrix doesn't: the last layer is taken as a whole or not at all.
    kept = {name: tensor for name, tensor in weights.items() if not (reshaped and name in head)}
    model.load_state_dict(kept, strict=False)
    if reshaped:
        tame(model.get_submodule(last_module))


def tame(head: nn.Module) -> None:
    """Draws a new last layer anew, as torch does, if its network draws larger weights than that.

    timm's EfficientNets draw from +-1/sqrt(classes): with five classes the first loss is 5 instead of 1.6, and its
    gradients spoil the layers below.
    """
    if isinstance(head, nn.Linear) and float(head.weight.detach().abs().max()) > 1.001 / head.in_features**0.5:
        head.reset_parameters()


def follow_quickly(model: nn.Module) -> None:
    """Raises the momentum of BatchNorm's running statistics to torch's default, 0.1, where it is lower.

    Networks that TensorFlow trained have 0.01: after a hundred steps their statistics would still be those of before,
    and evaluation far worse than training.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, 0.1)


def _read_weights(uri: str) -> Tensors:
    if uri.endswith(".safetensors"):
        return read_tensors(uri)
    try:
        weights = torch.load(io.BytesIO(files.read_bytes(uri)), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types: RuntimeError, UnpicklingError, EOFError ...
        raise CheckpointError(f"pretrained={uri}: no weights ({str(error)[:120]}); give a state_dict") from error
    found: Tensors = weights.get("model", weights.get("state_dict", weights))  # training scripts nest them so
    return found
