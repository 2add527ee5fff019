"""One step of gradient descent: what is computed from a batch, and the update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.config.recipe import Recipe
from pipeline.core.keyed_random import epochs_at
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.models.batch_transforms import transform_batch
from pipeline.models.distillation import distillation_losses
from pipeline.models.losses import sample_losses
from pipeline.training.optim.factory import set_learning_rates

Autocast = Callable[[], AbstractContextManager[None]]


class Step:
    """Computes gradients of the mean loss over a global batch, and updates the weights.

    model: what is called, which may be DistributedDataParallel around the network, or compiled. teacher: a network that
    it learns from, too.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        optimizers: list[torch.optim.Optimizer],
        normalise: nn.Module,
        order: Order,
        seed: int,
        world_size: int,
        device: torch.device,
        teacher: nn.Module | None = None,
    ) -> None:
        self.optimizers = optimizers
        self._teacher = teacher
        self._recipe, self._model, self._normalise, self._seed = recipe, model, normalise, seed
        self._order, self._world_size = order, world_size
        self._autocast = make_autocast(recipe, device)
        self._parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]

    def gradients(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Returns the sum of this rank's sample losses, and the norm of the gradient, which is the same on all
        ranks.
        """
        parts = _parts(batch, self._recipe.accumulate_steps, pairs=self._recipe.augment.mixes)
        total = torch.zeros((), device=batch.images.device)
        for number, part in enumerate(parts):
            unsynced = number + 1 < len(parts) and self._world_size > 1
            with self._model.no_sync() if unsynced else nullcontext():
                total += self._backward(part, step)
        # Parameters that a step doesn't use have no gradient.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return total, norm

    def _backward(self, batch: Batch, step: int) -> Tensor:
        recipe = self._recipe
        mixed = transform_batch(batch, self._normalise, recipe.augment, self._seed)
        with self._autocast():
            logits = self._model(mixed.images).float()
        losses = sample_losses(recipe.loss, logits, batch.labels, recipe.label_smoothing)
        if mixed.weight is not None and mixed.partner_labels is not None:
            others = sample_losses(recipe.loss, logits, mixed.partner_labels, recipe.label_smoothing)
            losses = mixed.weight * losses + (1 - mixed.weight) * others
        if self._teacher is not None:
            with torch.no_grad(), self._autocast():
                taught = self._teacher(mixed.images)
            softly = distillation_losses(logits, taught, recipe.distill_temperature)
            losses = (1 - recipe.distill_weight) * losses + recipe.distill_weight * softly
        total = losses.sum()
        # DDP averages gradients over the ranks; this makes that the mean over the global batch, however it is split.
        (total * (self._world_size / self._order.batch_size(step))).backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def update(self, norm: Tensor, step: int, num_steps: int) -> float:
        """Changes the weights, forgets the gradients, and returns the learning rate."""
        if self._recipe.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._recipe.clip_norm, norm)
        factor = set_learning_rates(self.optimizers, self._recipe, step, num_steps, self._order.steps_per_epoch)
        for optimizer in self.optimizers:
            optimizer.step()
        self.forget()
        return factor * self._recipe.learning_rate

    def forget(self) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def _parts(batch: Batch, count: int, pairs: bool) -> list[Batch]:
    """Cuts a batch into `count` parts at most, none of them empty; a pair that is mixed stays together."""
    if count == 1:
        return [batch]
    size = len(batch.rows)
    # parts are cut where pairs of positions begin, and a position may be missing
    firsts = np.flatnonzero(np.r_[True, np.diff(batch.positions // 2) > 0]) if pairs else np.arange(size)
    cuts = [int(firsts[len(firsts) * n // count]) for n in range(min(count, len(firsts)))]
    return [_slice(batch, first, last) for first, last in zip(cuts, [*cuts[1:], size], strict=True) if first < last]


def _slice(batch: Batch, first: int, last: int) -> Batch:
    names = ("rows", "images", "labels", "keys", "positions")
    epochs = epochs_at(batch.epochs, slice(first, last))
    return replace(batch, epochs=epochs, **{name: getattr(batch, name)[first:last] for name in names})


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def uses_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the forward pass in training is computed in bfloat16."""
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and computes_bfloat16(device))


def make_autocast(recipe: Recipe, device: torch.device) -> Autocast:
    """Returns a maker of contexts for the forward pass in the recipe's precision on `device`."""
    enabled = uses_bfloat16(recipe, device)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    return autocast


def num_threads(recipe: Recipe, local_world_size: int) -> int:
    """Returns the threads of a CPU worker: its share of the machine's cores, of which reading needs one.

    More threads than cores are far worse than fewer: OpenMP's threads spin while they wait for one another.
    """
    cores = usable_cpus() - (recipe.residency == "stream")
    return max(1, cores // local_world_size)
