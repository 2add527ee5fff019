"""Layers of a pretrained network that are frozen at first, and thaw one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.augment import Augment
from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import RecipeError
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.models.factory import make_model, recipe_model
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.schedules import set_learning_rates
from pipeline.training.selection.proxy import Proxy
from pipeline.training.train_step import TrainStep


def frozen(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 0.1, **changes}
    return make_recipe(
        "resnet18", image_size_px=32, evaluate_resize_px=32, epochs=8, warmup_epochs=0, schedule="constant", **fields
    )


def test_layers_are_frozen_and_thaw_one_by_one_from_the_last() -> None:
    recipe = frozen(frozen_epochs=2.0, thaw_epochs=4.0)
    net: Any = recipe_model(recipe, 10)
    (optimizer,) = make_optimizers(net, recipe)
    of_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    begins: dict[str, int] = {}
    for step in range(8 * 3):  # three steps an epoch
        set_learning_rates([optimizer], recipe, step, 24, 3)
        for name, parameter in net.named_parameters():
            if of_parameter[id(parameter)]["lr"]:
                begins.setdefault(name, step)
    assert begins["fc.weight"] == begins["fc.bias"] == 0
    assert begins["layer4.1.conv1.weight"] == 6
    assert begins["conv1.weight"] == begins["bn1.bias"] == 18
    blocks = [begins[f"layer{stage}.{block}.conv1.weight"] for stage in (4, 3, 2, 1) for block in (1, 0)]
    assert blocks == sorted(blocks)
    assert blocks[-1] < 18


def test_frozen_weights_keep_their_bits_and_learn_afterwards() -> None:
    recipe = frozen(frozen_epochs=1.0)
    torch.manual_seed(0)
    net: Any = recipe_model(recipe, 10)
    (optimizer,) = make_optimizers(net, recipe)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for step in range(3):
        set_learning_rates([optimizer], recipe, step, 16, 2)
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        same = {name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])}
        assert same == ({name for name in before if not name.startswith("fc.")} if step < 2 else set())


def test_freezing_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"frozen_epochs=5\.0 and thaw_epochs=3\.0 leave no epoch .* fit_head=only"):
        frozen(frozen_epochs=5.0, thaw_epochs=3.0)
    with pytest.raises(RecipeError, match="don't go together with optimizer=muon; use adamw"):
        replace(frozen(), optimizer="muon", frozen_epochs=1.0)
    with pytest.raises(RecipeError, match=r"fit_seconds=60\.0 doesn't go together with frozen_epochs .* give --epochs"):
        replace(frozen(frozen_epochs=1.0), fit_seconds=60.0)
    with pytest.raises(RecipeError, match="frozen_epochs=-1 must be 0 or more"):
        frozen(frozen_epochs=-1)
    with pytest.raises(RecipeError, match=r"^SeedCnn has no blocks .* layer_decay, frozen_epochs and"):
        make_optimizers(make_model("seed-cnn", 10, 32), frozen(frozen_epochs=1.0))


def batch_of(count: int, size_px: int = 8) -> Batch:
    images = torch.randint(0, 256, (count, 3, size_px, size_px), generator=torch.Generator().manual_seed(1))
    rows = np.arange(count)
    return Batch(0, rows, images.to(torch.uint8), torch.arange(count) % 4, rows.astype(np.uint64), rows, rows[:0])


def head_after(steps: int, frozen_trunk: bool, **changes: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Returns the last layer after some steps of two an epoch, and the parameters that the optimiser knows state of.

    frozen_trunk: whether the other layers are no parameters for autograd, the plain way to freeze them.
    """
    epochs = 0.0 if frozen_trunk else 2.0
    recipe = frozen(frozen_epochs=epochs, augment=Augment(), precision="float32", **changes)
    recipe = replace(recipe, global_batch_size=8)
    torch.manual_seed(0)
    net: nn.Module = recipe_model(recipe, 4).train()
    if frozen_trunk:
        net.requires_grad_(requires_grad=False)
        net.get_submodule("fc").requires_grad_()
    optimizers = make_optimizers(net, recipe)
    step = TrainStep(recipe, net, optimizers, Order((16,), 0, 8))
    for number in range(steps):
        _, norm = step.gradients(batch_of(8), number)
        step.update(norm, number, 16)
    known = {name for name, each in net.named_parameters() if optimizers[0].state.get(each)}
    return {name: each.detach() for name, each in net.named_parameters() if name.startswith("fc.")}, known


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "nesterov", "clip_norm": 0.1},
        {"optimizer": "nesterov", "sam_radius": 0.5},
        {"optimizer": "adamw", "clip_norm": 0.1, "sam_radius": 0.5, "accumulate_steps": 2},
    ],
    ids=str,
)
def test_while_layers_are_frozen_the_last_one_learns_as_if_they_were_no_parameters(changes: dict[str, Any]) -> None:
    changes = {"learning_rate": 0.01, **changes}
    ours, known = head_after(4, frozen_trunk=False, **changes)
    theirs, _ = head_after(4, frozen_trunk=True, **changes)
    assert known == {"fc.weight", "fc.bias"}  # no momentum from before they begin
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert len(head_after(5, frozen_trunk=False, **changes)[1]) > 2


def test_a_proxy_freezes_no_layers() -> None:
    recipe = frozen(frozen_epochs=1.0, thaw_epochs=1.0, layer_decay=0.8, augment=Augment(), precision="float32")
    proxy_filter = ProxyFilter("seed-cnn", keep=0.5, update_every_steps=1)
    net: Any = make_model("seed-cnn", 4, 32)
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    Proxy(recipe, proxy_filter, net, Order((16,), 0, 8), 16).keep(batch_of(8, 32), 0)
    assert not any(torch.equal(each, before[name]) for name, each in net.named_parameters())
