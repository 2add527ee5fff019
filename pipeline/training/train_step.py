"""One step of gradient descent: gradients of a batch, and the update of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.config.recipe import Recipe
from pipeline.core.keyed_random import epochs_at
from pipeline.loader.batch import Batch
from pipeline.loader.normalise import Normalise
from pipeline.loader.sample_order import Order
from pipeline.models.batch_transforms import transform_batch
from pipeline.models.device.precision import forward_dtype, make_autocast
from pipeline.models.device.sharding import own_part, whole
from pipeline.models.distillation import distillation_losses
from pipeline.models.losses import sample_losses
from pipeline.training.on_device.loss_scale import LossScale
from pipeline.training.optim.clipping import adaptively_clipped, clip_adaptively
from pipeline.training.optim.found_inf import set_found_inf
from pipeline.training.optim.schedules import has_started, set_learning_rates
from pipeline.training.optim.sharpness import moved_uphill


class TrainStep:
    """Computes gradients of the mean loss over a global batch, and updates the weights.

    model: the network as it is called: bare, compiled, in DistributedDataParallel or in FSDP; its parameters say on
    which device. optimizers: of its parameters. order: of the run; gives the seed of augmentation and the sizes of
    batches. teacher: a network whose outputs are learnt from beside the labels; None for none.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        optimizers: list[torch.optim.Optimizer],
        order: Order,
        world_size: int = 1,
        teacher: nn.Module | None = None,
    ) -> None:
        self.optimizers = optimizers
        self._recipe, self._model, self._order = recipe, model, order
        self._world_size, self._teacher = world_size, teacher
        self._clipped = adaptively_clipped(model) if recipe.adaptive_clip else []
        self._parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        device = self._parameters[0].device
        is_float16 = forward_dtype(recipe.precision, device) == torch.float16
        self.loss_scale = LossScale(device) if is_float16 else None
        self.normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
        self._autocast = make_autocast(recipe, device)

    def gradients(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Computes the gradients of this rank's part of a global batch, averaged over the ranks.

        Returns two scalars: the sum of this rank's sample losses, and the norm of the gradient, the same on all ranks.
        With `sam_radius`, the gradient is that at weights which are moved along a first one. Weights that are frozen in
        the step have none: it is as if they were no parameters.
        """
        total = self._add_gradients(batch, step)
        norm = self.gradient_norm()
        if self._recipe.sam_radius:
            with moved_uphill(self._model, self._parameters, norm, self._recipe.sam_radius):
                self._add_gradients(batch, step)
            norm = self.gradient_norm()
        return total, norm

    def _add_gradients(self, batch: Batch, step: int) -> Tensor:
        """Adds the gradients of this rank's part of a batch; returns the sum of its sample losses."""
        parts = _micro_batches(batch, self._recipe.accumulate_steps, pairs=self._recipe.augment.mixes)
        total = torch.zeros((), device=batch.images.device)
        for number, part in enumerate(parts):
            # Ranks exchange gradients with the last micro-batch alone.
            is_local = number + 1 < len(parts) and self._world_size > 1
            with _without_exchange(self._model, is_local):
                total += self._backward(part, step)
        if self._recipe.frozen_epochs or self._recipe.thaw_epochs:
            self._drop_frozen(step)
        return total

    def _drop_frozen(self, step: int) -> None:
        """Drops gradients of frozen weights, which would count in the norm, and fill the optimisers' averages."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if not has_started(group, step, self._order.steps_per_epoch):
                    for parameter in group["params"]:
                        parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Returns the norm of the gradient, a scalar. In float16, the scale of the losses is taken out of it first."""
        # A parameter that a step doesn't use has no gradient.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.loss_scale:
            self.loss_scale.unscale([own_part(gradient) for gradient in gradients])
        return whole(torch.nn.utils.get_total_norm(gradients))

    def _backward(self, batch: Batch, step: int) -> Tensor:
        """Adds the gradients of one micro-batch; returns the sum of its sample losses, a scalar."""
        total = self.losses(batch).sum()
        # DDP averages gradients over the ranks. This factor turns a rank's sum into the mean over the global batch,
        # however the batch is split among ranks and micro-batches.
        self.backward(total * (self._world_size / self._order.batch_size(step)))
        return total.detach()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, a scalar; in float16 those of the scaled one."""
        (loss * self.loss_scale.scale if self.loss_scale else loss).backward()  # type: ignore[no-untyped-call]

    def losses(self, batch: Batch) -> Tensor:
        """Returns float [N], the loss of each sample of a batch, transformed as the recipe says."""
        recipe = self._recipe
        mixed = transform_batch(batch, self.normalise, recipe.augment, self._order.seed)
        with self._autocast():
            logits = self._model(mixed.images).float()
        partners = None
        if mixed.weight is not None and mixed.partner_labels is not None:
            partners = (mixed.weight, mixed.partner_labels)
        smoothing, threshold = recipe.label_smoothing, recipe.target_threshold
        losses = sample_losses(recipe.loss, logits, batch.labels, smoothing, threshold, partners)
        if recipe.sum_classes:
            losses = losses * logits.shape[1]
        if self._teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_logits = self._teacher(mixed.images)
            soft_losses = distillation_losses(logits, teacher_logits, recipe.distill_temperature)
            losses = (1 - recipe.distill_weight) * losses + recipe.distill_weight * soft_losses
        return losses

    def update(self, norm: Tensor, step: int, num_steps: int, found_inf: Tensor | None = None) -> float:
        """Updates the weights, clears the gradients, and returns the learning rate of step `step` of `num_steps`.

        norm: of the gradient, from `gradients`; cut to the recipe's `clip_norm`, if it has one. found_inf: scalar on
        the device (`StepsInFlight.add`); 1 leaves weights and optimisers as they are. None where loss and gradient are
        known to be finite; in float16, gradients are looked at here then.
        """
        if self.loss_scale and found_inf is None:
            found_inf = norm.isfinite().logical_not().float()
        if self._recipe.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._recipe.clip_norm, norm)
        if self._recipe.adaptive_clip:
            clip_adaptively(self._clipped, self._recipe.adaptive_clip)
        rate = self._set_learning_rates(step, num_steps)
        set_found_inf(self.optimizers, found_inf)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.loss_scale and found_inf is not None:
            self.loss_scale.update(found_inf)
        self.zero_grad()
        return rate

    def _set_learning_rates(self, step: int, num_steps: int) -> float:
        factor = set_learning_rates(self.optimizers, self._recipe, step, num_steps, self._order.steps_per_epoch)
        return factor * self._recipe.learning_rate

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()


@contextmanager
def _without_exchange(model: Any, is_local: bool) -> Iterator[None]:
    """Keeps the gradients of the block on their rank, if `is_local`. model: in DistributedDataParallel or FSDP then."""
    if not is_local:
        yield
    elif hasattr(model, "set_requires_gradient_sync"):  # FSDP
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        with model.no_sync():
            yield


def _micro_batches(batch: Batch, count: int, pairs: bool) -> list[Batch]:
    """Returns a batch in at most `count` parts, none of them empty.

    pairs: samples are mixed in pairs, each of which stays together.
    """
    if count == 1:
        return [batch]
    size = len(batch.rows)
    # Cut where a pair of positions begins. A position is missing where a corrupt row was left out.
    firsts = np.flatnonzero(np.r_[True, np.diff(batch.positions // 2) > 0]) if pairs else np.arange(size)
    cuts = [int(firsts[len(firsts) * n // count]) for n in range(min(count, len(firsts)))]
    return [_slice(batch, first, last) for first, last in zip(cuts, [*cuts[1:], size], strict=True) if first < last]


def _slice(batch: Batch, first: int, last: int) -> Batch:
    names = ("rows", "images", "labels", "keys", "positions")
    epochs = epochs_at(batch.epochs, slice(first, last))
    return replace(batch, epochs=epochs, **{name: getattr(batch, name)[first:last] for name in names})


def num_threads(recipe: Recipe, local_world_size: int) -> int:
    """Returns the number of threads of a CPU worker: its share of the machine's cores; streaming keeps one core free.

    local_world_size: workers on this machine. More threads than cores are far slower than fewer, because OpenMP's
    threads spin while they wait for one another.
    """
    cores = usable_cpus() - (recipe.residency == "stream")
    return max(1, cores // local_world_size)
