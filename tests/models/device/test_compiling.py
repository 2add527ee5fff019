"""torch.compile before the first step: every size of batch is ready then, and nothing has changed."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.loader.sample_order import Order
from pipeline.models.device.compiling import compile_network, stand_in, steps_of_each_size, warm_up
from pipeline.models.factory import recipe_model
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.train_step import TrainStep

SIZE_PX = 16
CPU = torch.device("cpu")


class Net(nn.Module):
    """Has everything that a training pass may change: BatchNorm's statistics, and dropout's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layers(images).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("rows", "batch", "repeats", "sizes"),
    [
        (5119, 1024, 1, [1023, 1024]),
        (4096, 1024, 1, [1024]),
        (9, 100, 1, [9]),
        (3070, 2048, 2, [1534, 1536]),  # a round's four parts hold 767 or 768 images, twice
    ],
)
def test_there_is_a_step_of_each_size(rows: int, batch: int, repeats: int, sizes: list[int]) -> None:
    order = Order((rows,), 0, batch, repeats=repeats)
    for first in (0, 7, 1000):
        steps = steps_of_each_size(order, first)
        assert sorted(order.batch_size(step) for step in steps) == sizes
        assert all(step >= first for step in steps)
        later = range(first, first + 20 * order.steps_per_epoch)
        assert {order.batch_size(step) for step in later} == set(sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16", "augment": Augment(mixup_alpha=0.4, cutmix_alpha=1.0), "accumulate_steps": 2},
    ],
)
def test_it_compiles_each_size_and_leaves_everything_as_it_was(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    recipe = replace(make_recipe("digits", precision="float32", accumulate_steps=1), **changes)
    net = Net().to(memory_format=torch.channels_last)
    net.get_buffer("layers.1.running_mean").add_(0.5)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, dynamic=False, backend=backend)
    order = Order((23,), 0, 12, pairs=recipe.augment.mixes)  # batches of 11 and 12
    step = TrainStep(recipe, compiled, make_optimizers(net, recipe), order)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    batches = [(n, stand_in(order.batch_size(n), SIZE_PX, torch.device("cpu"))) for n in steps_of_each_size(order, 0)]
    warm_up(net, step.gradients, batches)

    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(not optimizer.state for optimizer in step.optimizers)
    ready = len(graphs)
    assert ready >= 2
    for number in range(4):  # two epochs: nothing is left to compile
        images = torch.randint(0, 256, (order.batch_size(number), SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)
        batch = replace(stand_in(len(images), SIZE_PX, torch.device("cpu")), images=images.permute(0, 3, 1, 2))
        _, norm = step.gradients(batch, number)
        step.update(norm, number, 4)
    assert len(graphs) == ready
    assert not torch.equal(before["layers.1.running_mean"], net.state_dict()["layers.1.running_mean"])


def test_a_network_that_cannot_be_compiled_is_said_in_one_line_and_nothing_has_changed() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand a trace of many lines")

    net = Net()
    compiled = torch.compile(net, backend=backend)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(0, stand_in(4, SIZE_PX, torch.device("cpu")))]
    with pytest.raises(RecipeError) as error:
        warm_up(net, lambda batch, step: compiled(batch.images.float()).sum().backward(), batches)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("compile: torch.compile fails for this network here (")
    assert "no C++ compiler" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_limit_of_shapes_is_put_back() -> None:
    from torch._dynamo import config

    before = config.recompile_limit
    with ExitStack() as exits:
        compile_network(Net(), exits)
        assert config.recompile_limit >= 64
    assert config.recompile_limit == before


@pytest.mark.long
def test_a_compiled_network_learns_as_it_does_uncompiled_from_one_graph_for_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    recipe = replace(make_recipe("digits"), precision="float32", global_batch_size=12, image_size_px=SIZE_PX)
    order = Order((23,), 0, 12)  # batches of 11 and 12
    draws = torch.Generator().manual_seed(1)
    sizes = [order.batch_size(number) for number in range(6)]
    images = [torch.randint(0, 256, (size, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8, generator=draws) for size in sizes]
    losses: dict[bool, list[float]] = {}
    from torch._dynamo.utils import counters  # takes a second

    counters.clear()
    for is_compiled in (False, True):
        torch.manual_seed(0)
        net = recipe_model(recipe, 10).to(memory_format=torch.channels_last).train()
        with ExitStack() as exits:
            model = compile_network(net, exits) if is_compiled else net
            step = TrainStep(recipe, model, make_optimizers(net, recipe), order)
            losses[is_compiled] = []
            for number, pixels in enumerate(images):
                batch = replace(stand_in(len(pixels), SIZE_PX, CPU), images=pixels.permute(0, 3, 1, 2))
                loss, norm = step.gradients(batch, number)
                step.update(norm, number, len(images))
                losses[is_compiled].append(float(loss))
    assert losses[True][0] == pytest.approx(losses[False][0], rel=1e-5)
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)  # what is rounded otherwise grows from step to step
    assert losses[True][-1] < losses[True][0]
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(set(sizes)) == 2
