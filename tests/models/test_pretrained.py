"""Weights to start from: what fits is loaded, and anything else is refused."""

from pathlib import Path

import pytest
import torch

from pipeline.core.errors import CheckpointError
from pipeline.models.factory import make_model
from pipeline.models.pretrained.fit import load_pretrained
from pipeline.models.tensor_file import serialize_tensors


def test_pretrained_weights_are_loaded_and_other_classes_get_a_new_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, same, other = (make_model("resnet18", classes, 224) for classes in (10, 10, 7))
    (tmp_path / "w.safetensors").write_bytes(serialize_tensors(trained.state_dict()))
    torch.save({"model": trained.state_dict()}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        load_pretrained(same, str(tmp_path / name))
        assert torch.equal(same.fc.weight, trained.fc.weight)
        load_pretrained(other, str(tmp_path / name))
        assert torch.equal(other.conv1.weight, trained.conv1.weight)
        assert other.fc.weight.shape == (7, 512)
    with pytest.raises(CheckpointError, match="doesn't fit the model"):
        load_pretrained(make_model("resnet34", 10, 224), str(tmp_path / "w.pt"))
