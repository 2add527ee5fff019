"""Losses and regularisers of today's recipes, beside timm's own on the same batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.models.factory import recipe_model
from pipeline.models.layers import DroppedNorm, may_draw
from pipeline.models.losses import sample_losses
from pipeline.training.optim.clipping import adaptively_clipped, clip_adaptively
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.optim.schedules import set_learning_rates

timm = pytest.importorskip("timm")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixes", [False, True])
def test_binary_cross_entropy_is_timms_with_its_gradient(threshold: float, smoothing: float, mixes: bool) -> None:
    from timm.data.mixup import mixup_target
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    ours, theirs = draw(12, 5).requires_grad_(), draw(12, 5).requires_grad_()
    labels, share = torch.arange(12) % 5, 0.7
    reference = BinaryCrossEntropy(smoothing, threshold or None)
    if mixes:  # timm mixes a batch with itself in reverse
        target: Any = mixup_target(labels, 5, share, smoothing).double()
    else:
        target = labels
    expected = reference(theirs, target)
    mixed = (torch.full((12,), share, dtype=torch.float64), labels.flip(0)) if mixes else None
    losses = sample_losses("binary-cross-entropy", ours, labels, smoothing, threshold, mixed)
    assert losses.shape == (12,)
    losses.mean().backward()
    expected.backward()
    # timm's mixed targets are of float32
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)


def resnet(**changes: Any) -> Recipe:
    return replace(make_recipe("resnet18"), image_size_px=96, evaluate_resize_px=96, **changes)


def test_stochastic_depth_is_timms_with_the_same_draws() -> None:
    theirs = timm.create_model("resnet18", num_classes=7, drop_path_rate=0.5).train()
    ours = recipe_model(resnet(stochastic_depth=0.5), 7).train()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bn2.weight"):  # timm starts with blocks that add nothing
            torch.nn.init.ones_(parameter)
    ours.load_state_dict(theirs.state_dict())  # torchvision's names, also of the last norm of a block
    images = torch.randn(6, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(net(images))
    torch.testing.assert_close(*outputs)
    torch.manual_seed(4)
    assert not torch.allclose(ours(images), outputs[0], atol=1e-2)
    ours.eval()
    assert torch.equal(ours(images), ours(images))
    rates = [module.p for module in ours.modules() if isinstance(module, DroppedNorm)]
    assert rates == pytest.approx([0.5 * number / 7 for number in range(8)])
    assert may_draw(ours)


def test_networks_that_have_no_stochastic_depth_say_so() -> None:
    with pytest.raises(RecipeError, match=r"stochastic_depth=0\.1: vgg11_bn has no residual blocks"):
        recipe_model(replace(make_recipe("cifar10-vgg11"), stochastic_depth=0.1), 7)
    net: Any = recipe_model(resnet(model="timm:resnet18", stochastic_depth=0.1), 7)
    assert net.layer4[1].drop_path.drop_prob == pytest.approx(0.1)
    with pytest.raises(RecipeError, match=r"stochastic_depth=0\.1: timm:vgg11 has none; set it to 0"):
        recipe_model(resnet(model="timm:vgg11", stochastic_depth=0.1), 7)


def test_thresholds_are_of_binary_cross_entropy_alone() -> None:
    with pytest.raises(RecipeError, match=r"target_threshold=0\.2 needs loss=binary-cross-entropy; set it, or 0"):
        resnet(target_threshold=0.2)
    with pytest.raises(RecipeError, match=r"stochastic_depth=1\.0 must lie in \[0, 1\)"):
        resnet(stochastic_depth=1.0)


def test_adaptive_clipping_is_timms() -> None:
    from timm.utils.agc import adaptive_clip_grad

    ours, theirs = (recipe_model(resnet(), 7).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    for number, (one, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        one.grad = draw(*one.shape) * 10.0 ** (number % 5 - 4)
        other.grad = one.grad.clone()
    next(ours.parameters()).grad = next(theirs.parameters()).grad = None  # a parameter that a step doesn't use
    clip_adaptively(adaptively_clipped(ours), 0.05)
    before = [None if each.grad is None else each.grad.clone() for each in theirs.parameters()]
    adaptive_clip_grad(list(theirs.parameters())[:-2], 0.05)
    changed = 0
    for one, other, old in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        if one.grad is not None and old is not None:
            torch.testing.assert_close(one.grad, other.grad)
            changed += not torch.equal(one.grad, old)
    assert 20 < changed < 59
    assert torch.equal(ours.fc.weight.grad, before[-2])


@pytest.mark.parametrize("model", ["resnet18", "timm:resnet18"])
def test_layer_decay_is_timms(model: str) -> None:
    from timm.optim._param_groups import param_groups_layer_decay

    net = recipe_model(resnet(model=model), 7)
    recipe = resnet(model=model, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, layer_decay=0.75,
                    warmup_epochs=0, schedule="one-cycle")  # fmt: skip
    (optimizer,) = make_optimizers(net, recipe)
    names = {id(parameter): name for name, parameter in net.named_parameters()}

    def of_names(groups: Any, rate: str, peak: float) -> dict[str, tuple[float, float]]:
        return {names[id(p)]: (peak * group[rate], group["weight_decay"]) for group in groups for p in group["params"]}

    reference: Any = timm.create_model("resnet18", num_classes=7)
    groups = param_groups_layer_decay(reference, weight_decay=0.05, layer_decay=0.75)
    names |= {id(parameter): name for name, parameter in reference.named_parameters()}
    theirs = of_names(groups, "lr_scale", 1e-3)
    ours = of_names(optimizer.param_groups, "lr", 1.0)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values == pytest.approx(theirs[name]), name
    assert ours["fc.weight"][0] == 1e-3
    assert ours["conv1.weight"][0] == pytest.approx(1e-3 * 0.75**9)
    set_learning_rates([optimizer], recipe, 5, 10, 1)
    halved = of_names(optimizer.param_groups, "lr", 1.0)
    assert halved["layer1.0.conv1.weight"][0] == pytest.approx(0.5e-3 * 0.75**8)


def test_layer_decay_needs_known_layers() -> None:
    with pytest.raises(RecipeError, match=r"^VGG has no blocks .* layer_decay, .* set layer_decay=1"):
        make_optimizers(recipe_model(make_recipe("cifar10-vgg11"), 7), replace(resnet(), layer_decay=0.5))
    with pytest.raises(RecipeError, match=r"layer_decay=0\.5 must lie in \(0, 1\], and be 1 with optimizer=muon"):
        resnet(layer_decay=0.5, optimizer="muon")
    with pytest.raises(RecipeError, match="adaptive_clip and clip_norm both cut gradients"):
        resnet(adaptive_clip=0.01, clip_norm=1.0)
