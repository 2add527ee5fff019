"""The step on tensors of a GPU that isn't there: torch computes devices, types and shapes without one.

It finds tensors that are left on the CPU. Backward passes need a GPU; gradients of zeros stand in for theirs.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.config.choices import OptimizerName
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.loader.resident import ResidentSplit, resident_batches
from pipeline.loader.sample_order import Order, training_order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.transform import training_transform
from pipeline.models.device.compiling import stand_in
from pipeline.models.factory import make_model, recipe_model
from pipeline.training.on_device import steps_in_flight
from pipeline.training.on_device.steps_in_flight import StepsInFlight
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.selection.proxy import Proxy
from pipeline.training.setup import Place, make_average
from pipeline.training.train_step import TrainStep

GPU = torch.device("cuda", 0)
ROWS = 16

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")


def on_gpu(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.device == GPU for tensor in tensors)


class Copies:
    """Stands in for the ring of pinned copies."""

    def __init__(self, *_: Any) -> None: ...

    def start(self, number: int, values: Tensor) -> None:
        assert on_gpu(values)


def fused_sgd(parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], **named: Any) -> None:
    """Stands in for torch's, which has no rule for shapes."""
    assert on_gpu(*parameters, *gradients, *momenta, named["found_inf"], named["grad_scale"])


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    monkeypatch.setattr(torch.nn.init, "dirac_", lambda tensor: tensor)  # channel by channel: seconds
    monkeypatch.setattr(steps_in_flight, "HostCopies", Copies)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does two steps: the first creates the optimisers' state."""
    with GPU:
        net = recipe_model(recipe, 10).train()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def backward(loss: Tensor) -> None:
        assert on_gpu(loss)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    optimizers, average = make_optimizers(net, recipe), make_average(recipe, net)
    step, in_flight = TrainStep(recipe, net, optimizers, Order((ROWS,), 0, ROWS)), StepsInFlight(1, GPU)
    for number in range(2):
        batch = stand_in(ROWS, recipe.image_size_px, GPU)
        loss, norm = step.gradients(batch, number)
        scale = step.loss_scale.scale if step.loss_scale else None
        found_inf = in_flight.add(number, batch.rows, loss, norm, scale)
        assert found_inf is not None
        assert on_gpu(loss, norm, scale, found_inf)
        step.update(norm, number, 2, found_inf)
        if average is not None:
            average.update(number + 1, 2, found_inf)
    assert on_gpu(*net.parameters(), *net.buffers())
    for optimizer in optimizers:
        for state in optimizer.state.values():
            assert on_gpu(*(value for value in state.values() if isinstance(value, Tensor)))


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_each_optimiser_steps_on_the_device_alone(name: OptimizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(make_recipe("digits"), optimizer=name, precision="float16", clip_norm=1.0, image_size_px=16)
    steps(replace(recipe, global_batch_size=ROWS), monkeypatch)


@pytest.mark.parametrize(
    "recipe",
    [
        make_recipe("cifar10-94"),  # look-ahead, whitening
        replace(make_recipe("resnet50-v2"), model="resnet18", image_size_px=64),  # MixUp, CutMix, erasing, an average
    ],
    ids=lambda recipe: recipe.name,
)
def test_what_is_mixed_erased_and_averaged_stays_on_the_device(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(replace(recipe, precision="bfloat16", global_batch_size=ROWS), monkeypatch)


def test_batches_of_resident_images_are_made_on_the_device() -> None:
    recipe = replace(make_recipe("cifar10-94"), global_batch_size=ROWS)
    images = torch.zeros(40, 32, 32, 3, dtype=torch.uint8, device=GPU).permute(0, 3, 1, 2)
    keys = stand_in(40, 32, GPU).keys
    split = ResidentSplit(images, torch.zeros(40, dtype=torch.int64, device=GPU), keys, keys > 100)
    order = training_order(recipe, (40,), 0)
    batches = list(resident_batches(split, TrainSampler(order, 4), training_transform(recipe, 0, "kernel")))
    assert len(batches) == 4
    assert on_gpu(*(tensor for batch in batches for tensor in (batch.images, batch.labels)))


def test_a_proxy_chooses_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(make_recipe("cifar10-96"), precision="bfloat16", global_batch_size=ROWS)
    assert recipe.proxy_filter
    with GPU:
        net = make_model(recipe.proxy_filter.model, 10, 32)
    proxy = Proxy(recipe, recipe.proxy_filter, net, Order((ROWS,), 0, ROWS), 8)

    def backward(loss: Tensor) -> None:
        assert on_gpu(loss)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    for step in range(2):
        kept, total = proxy.keep(stand_in(ROWS, 32, GPU), step)
        assert on_gpu(kept, total)
        assert len(kept) == ROWS // 2


def test_a_gpu_without_a_number_is_the_first() -> None:
    assert Place.alone(torch.device("cuda")).device == GPU  # torch.cuda.set_device refuses one without
    assert Place.alone(torch.device("cpu")).device == torch.device("cpu")
