"""Which errors of a prediction are the model's own."""

import copy

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectStoreFullError, RayTaskError

from pipeline.core.errors import CheckpointError, ClusterError, MissingPackageError, ModelFailedError, StorageError
from pipeline.evaluation.batch_predict.model_failures import model_failure, tagged
from pipeline.evaluation.batch_predict.worker import PredictWorker
from pipeline.models.load import find_model
from tests.support.trained.live import copy_version


@pytest.mark.parametrize(
    ("error", "is_models"),
    [
        (ValueError("NaN"), True),
        (RuntimeError("size mismatch for conv1.weight"), True),
        (KeyError("layer"), True),
        (CheckpointError("damaged"), True),
        (MemoryError(), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"), False),
        (ModuleNotFoundError("No module named 'timm'"), False),
        (MissingPackageError("timm"), False),
        (ClusterError("no code for this GPU"), False),
        (StorageError("no credentials"), False),
        (OSError(5, "Input/output error"), False),
    ],
)
def test_errors_within_the_code_of_a_model(error: Exception, is_models: bool) -> None:
    with pytest.raises((type(error), ModelFailedError)) as raised, tagged():
        raise error
    sent = copy.copy(raised.value)  # as from an actor: by pickle's protocol, without its cause
    assert sent.__cause__ is None
    found = model_failure(RayTaskError("predict", "traceback", sent))
    assert (found is not None) == is_models
    assert str(error) in str(raised.value)


@pytest.mark.parametrize(
    "error", [ActorDiedError(), NodeDiedError("gone"), ObjectStoreFullError(), ValueError("a defect in the driver")]
)
def test_errors_outside_of_it(error: Exception) -> None:
    assert model_failure(error) is None


def test_a_worker_raises_what_loading_raised_when_it_is_called(trained: str, tmp_path: str) -> None:
    """Of an actor whose start fails, Ray keeps no exception."""
    place = f"{tmp_path}/registry"
    run = f"{place}/versions/{copy_version(place, trained, 'damaged', damaged=True)}"
    worker = PredictWorker(find_model(run), "none", 1)
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        worker({"unit": np.zeros(1), "error": np.array(["[]"]), "image": np.zeros((1, 1, 8, 8, 3), np.uint8)})
