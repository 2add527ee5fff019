"""Files of tensors: safetensors with a checksum. Opening one never runs code, unlike a pickle."""

import json
import zlib

import torch
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from pipeline.core.errors import CheckpointError
from pipeline.storage import files

Tensors = dict[str, Tensor]


def serialize_tensors(tensors: Tensors, **metadata: str) -> bytes:
    """Returns a safetensors file of CPU tensors.

    metadata: strings for the header, where the CRC-32 of the tensors' bytes, in the order of their names, is added.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors_bytes(contiguous, {**metadata, "crc32": str(_crc32(tensors))})


def read_tensors(uri: str) -> Tensors:
    """Returns the tensors of the safetensors file at `uri`, on the CPU.

    Raises CheckpointError if the file is missing, isn't safetensors, or doesn't match the CRC-32 in its header. Files
    without a CRC-32, which other programs write, are accepted.
    """
    if not files.exists(uri):
        raise CheckpointError(f"{uri}: no such file; the checkpoint isn't complete")
    data = files.read_bytes(uri)
    try:
        tensors: Tensors = read_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # safetensors raises an exception type that it doesn't export
        raise CheckpointError(f"{uri}: damaged or not safetensors ({str(error)[:120]}); remove it") from error
    expected = header.get("__metadata__", {}).get("crc32")
    if expected is not None and int(expected) != _crc32(tensors):
        raise CheckpointError(f"{uri}: its bytes have changed (CRC-32); remove it")
    return tensors


def _crc32(tensors: Tensors) -> int:
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous().reshape(-1)
        # As bytes, because NumPy has no bfloat16. An empty tensor has no bytes, and its view raises.
        crc = zlib.crc32(tensor.view(torch.uint8).numpy().data, crc) if tensor.numel() else crc
    return crc
