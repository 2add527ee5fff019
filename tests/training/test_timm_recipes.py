"""The recipes after timm's, step by step beside timm's own loss, optimiser and schedule, on the same batches."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.loader.batch import Batch
from pipeline.models.batch_transforms import transform_batch
from pipeline.models.factory import recipe_model
from pipeline.training.job import TrainJob
from pipeline.training.optim.factory import describe_groups, make_optimizers
from pipeline.training.optim.optimizers import Lamb
from pipeline.training.optim.schedules import set_learning_rates
from pipeline.training.train_step import TrainStep
from pipeline.training.worker_data import Batches

timm = pytest.importorskip("timm")

# What the paper's table 2 says (arXiv 2110.00476): epochs, rate, decay, smoothing, depth, MixUp, RandAugment, size.
TABLE = {
    "resnet50-a1": (600, 5e-3, 0.01, 0.1, 0.05, 0.2, 7, 224),
    "resnet50-a2": (300, 5e-3, 0.02, 0.0, 0.05, 0.1, 7, 224),
    "resnet50-a3": (100, 8e-3, 0.02, 0.0, 0.0, 0.1, 6, 160),
}
STEPS_PER_EPOCH, EPOCHS = 3, 9


@pytest.mark.parametrize("name", TABLE)
def test_the_settings_are_the_papers(name: str) -> None:
    recipe = make_recipe(name)
    augment = recipe.augment
    found = (
        recipe.epochs, recipe.learning_rate, recipe.weight_decay, recipe.label_smoothing, recipe.stochastic_depth,
        augment.mixup_alpha, augment.rand_strength, recipe.image_size_px,
    )  # fmt: skip
    assert found == TABLE[name]
    assert recipe.repeats == (1 if name == "resnet50-a3" else 3)
    assert abs(recipe.global_batch_size - 2048) <= 1
    assert (augment.cutmix_alpha, augment.rand_deviation, recipe.warmup_epochs) == (1.0, 0.5, 5)
    assert (recipe.evaluate_size_px, recipe.evaluate_resize_px) == (224, int(224 / 0.95))


def small(name: str) -> Recipe:
    """The recipe with a small network on small images: all that is compared stays."""
    recipe = make_recipe(name)
    return replace(
        recipe, model="resnet18", image_size_px=16, evaluate_size_px=16, evaluate_resize_px=16, epochs=EPOCHS,
        warmup_epochs=3, global_batch_size=12, residency="resident", precision="float32",
        augment=replace(recipe.augment, flip_probability=0.0), shuffle_window_row_groups=None,
    )  # fmt: skip


class Reference:
    """timm's own: its LAMB with its defaults, its cosine by epochs, its binary cross-entropy on mixed targets."""

    def __init__(self, recipe: Recipe, net: nn.Module) -> None:
        from timm.loss.binary_cross_entropy import BinaryCrossEntropy
        from timm.optim._optim_factory import create_optimizer_v2
        from timm.scheduler.scheduler_factory import create_scheduler_v2

        self.net, self._recipe = net, recipe
        self.optimizer = create_optimizer_v2(
            net, opt="lamb", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, filter_bias_and_bn=True
        )
        self._schedule, _ = create_scheduler_v2(
            self.optimizer, sched="cosine", num_epochs=recipe.epochs, min_lr=1e-6, warmup_lr=1e-4,
            warmup_epochs=int(recipe.warmup_epochs),
        )  # fmt: skip
        self._loss = BinaryCrossEntropy(recipe.label_smoothing, target_threshold=recipe.target_threshold or None)

    def step(self, images: Tensor, targets: Tensor, epoch: int) -> float:
        """Takes a step, and returns the loss."""
        self._schedule.step(epoch)
        self.optimizer.zero_grad()
        loss = self._loss(self.net(images).float(), targets)  # ours computes losses in float32
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def mixed_targets(batch: Batch, weight: Tensor, partners: Tensor, smoothing: float, classes: int) -> Tensor:
    """timm's targets of a mixed batch: of both images, each smoothed."""
    from timm.data.mixup import one_hot

    off = smoothing / classes
    own, other = (one_hot(labels, classes, 1 - smoothing + off, off) for labels in (batch.labels, partners))
    targets: Tensor = own * weight[:, None] + other * (1 - weight[:, None])
    return targets


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet50-a1", marks=pytest.mark.slow),
        pytest.param("resnet50-a2", marks=pytest.mark.long),
        pytest.param("resnet50-a3", marks=pytest.mark.slow),
    ],
)
def test_each_step_is_timms(name: str, digits_dataset: str, tmp_path: Path) -> None:
    """In float64, but for the loss: LAMB magnifies roundings where a gradient is small. Clipping differs by 1e-6."""
    recipe = small(name)
    job = TrainJob(digits_dataset, str(tmp_path), recipe, seed=5, hold_out=0.975)
    batches = Batches(job, manifest.load(job.dataset), 1, 0, torch.device("cpu"), silent)
    assert batches.order.steps_per_epoch == STEPS_PER_EPOCH
    torch.manual_seed(0)
    net = recipe_model(recipe, 10).train().double()
    with torch.no_grad():  # or the blocks' kernels had no gradient in the first step
        for module in (each for each in net.modules() if isinstance(each, nn.BatchNorm2d)):
            module.weight.add_(0.1)
    reference = Reference(recipe, copy.deepcopy(net))
    ours = TrainStep(recipe, net, make_optimizers(net, recipe), batches.order)
    normalise = ours.normalise
    ours.normalise = lambda images: normalise(images).double()  # type: ignore[assignment]
    steps, num_steps = 4 * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH
    thresholded = 0
    for number, batch in enumerate(batches.training(0, steps)):
        torch.manual_seed(number)  # of stochastic depth
        total, norm = ours.gradients(batch, number)
        rate = ours.update(norm, number, num_steps)
        mixed = transform_batch(batch, ours.normalise, recipe.augment, 5)
        assert mixed.weight is not None
        assert mixed.partner_labels is not None
        targets = mixed_targets(batch, mixed.weight, mixed.partner_labels, recipe.label_smoothing, 10)
        thresholded += int(((targets > 0.2).sum(dim=1) == 2).sum())
        torch.manual_seed(number)
        expected = reference.step(mixed.images, targets, number // STEPS_PER_EPOCH)
        assert float(total) / len(batch.rows) == pytest.approx(expected, rel=2e-5)
        assert rate == pytest.approx(reference.optimizer.param_groups[0]["lr"], rel=1e-9)
    assert thresholded > 10  # images that show both
    for one, other in zip(net.parameters(), reference.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_lamb_is_timms_in_float64_and_so_is_its_clipping_of_trust() -> None:
    from timm.optim.lamb import Lamb as Theirs

    for trust_clip in (False, True):
        generator = torch.Generator().manual_seed(1)
        pairs = [
            [nn.Parameter(weight.clone()) for _ in range(2)]
            for weight in (torch.randn(6, 4, generator=generator, dtype=torch.float64) * scale for scale in (0.01, 3.0))
        ]
        ours = Lamb([pair[0] for pair in pairs], lr=0.1, weight_decay=0.02, trust_clip=trust_clip)
        theirs = Theirs(
            [pair[1] for pair in pairs], lr=0.1, weight_decay=0.02, trust_clip=trust_clip, max_grad_norm=None
        )
        for _ in range(8):
            for one, other in pairs:
                one.grad = torch.randn(6, 4, generator=generator, dtype=torch.float64)
                other.grad = one.grad.clone()
            ours.step()
            theirs.step()
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_rates_by_epoch_are_constant_in_each_and_begin_with_the_run(schedule: Any) -> None:
    recipe = replace(small("resnet50-a2"), schedule=schedule, schedule_end=0.0)
    net = nn.Linear(2, 2)
    (optimizer,) = make_optimizers(net, recipe)
    factors = [set_learning_rates([optimizer], recipe, step, EPOCHS * 4, 4) for step in range(EPOCHS * 4)]
    assert factors == [factor for factor in factors[::4] for _ in range(4)]
    assert factors[::4][:3] == pytest.approx([0.02, 0.02 + 0.98 / 3, 0.02 + 2 * 0.98 / 3])
    assert factors[12] == pytest.approx({"one-cycle": 1 - 3 / 9, "cosine": 0.75}[schedule])


def test_the_sum_over_classes_is_their_number_times_the_mean(digits_dataset: str, tmp_path: Path) -> None:
    recipe = small("resnet50-a3")
    job = TrainJob(digits_dataset, str(tmp_path), recipe, seed=5, hold_out=0.975)
    batches = Batches(job, manifest.load(job.dataset), 1, 0, torch.device("cpu"), silent)
    batch, net = next(batches.training(0, 1)), recipe_model(recipe, 10)
    mean, total = (
        TrainStep(each, net, make_optimizers(net, each), batches.order).losses(batch)
        for each in (recipe, replace(recipe, sum_classes=True))
    )
    torch.testing.assert_close(total, 10 * mean)


def test_blocks_that_add_nothing_at_first() -> None:
    recipe = replace(small("resnet50-a1"), model="resnet50")
    net: Any = recipe_model(recipe, 10)
    assert not net.layer3[2].bn3.weight.any()
    assert net.layer3[2].bn2.weight.all()
    with pytest.raises(RecipeError, match="zero_init_residual: vgg11_bn is no ResNet of torchvision; set it to false"):
        recipe_model(replace(recipe, model="vgg11_bn", stochastic_depth=0.0), 10)


def test_what_belongs_together_is_asked_for() -> None:
    plain = make_recipe("resnet50")
    with pytest.raises(RecipeError, match="schedule_by=epoch begins at warmup_from=0, which trains nothing"):
        replace(plain, schedule_by="epoch")
    with pytest.raises(RecipeError, match="sum_classes=True needs loss=binary-cross-entropy; set it, or false"):
        replace(plain, sum_classes=True)
    with pytest.raises(RecipeError, match="trust_clip=True needs optimizer=lamb; set it, or false"):
        replace(plain, trust_clip=True)


def test_weight_decay_that_falls_with_the_rate_is_timms() -> None:
    from timm.optim._optim_factory import create_optimizer_v2

    torch.manual_seed(0)
    ours, recipe = nn.Linear(4, 3).double(), replace(make_recipe("resnet50"), optimizer="adamw", learning_rate=0.1,
        weight_decay=0.5, corrected_weight_decay=True, warmup_epochs=3, epochs=10)  # fmt: skip
    theirs = copy.deepcopy(ours)
    (optimizer,) = make_optimizers(ours, recipe)
    reference = create_optimizer_v2(theirs, opt="adamc", lr=0.1, weight_decay=0.5)
    for step in range(10):
        factor = set_learning_rates([optimizer], recipe, step, 10, 1)
        for group in reference.param_groups:
            group["lr"] = 0.1 * factor
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, dtype=torch.float64)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert describe_groups(ours, [optimizer])[0]["weight_decay"] == 0.5
    with pytest.raises(RecipeError, match="corrected_weight_decay=True needs optimizer=adamw; set it, or false"):
        replace(recipe, optimizer="nesterov")
