"""A proxy: a small network that is trained on a run's batches, and keeps the images of each with the highest loss."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.recipe import Recipe
from pipeline.config.sampling import ProxyFilter
from pipeline.core.errors import DivergedError
from pipeline.core.keyed_random import Stream, bits
from pipeline.loader.batch import Batch
from pipeline.loader.sample_order import Order
from pipeline.models.factory import make_model
from pipeline.models.flops import operations_per_image
from pipeline.models.layers import may_draw
from pipeline.models.small_networks import Whitened
from pipeline.training.optim.factory import make_optimizers
from pipeline.training.train_step import TrainStep
from pipeline.training.worker_data import Batches

_FIRST_WEIGHTS, _DROPOUT = 0, 1  # keys of draws


class Proxy:
    """A network that learns from the hardest images of each batch, at every few steps, and names them in all.

    As airbench96_faster's (Jordan, github.com/KellerJordan/cifar10-airbench), it is trained as the recipe trains its
    own network: by its optimiser, rates, weight decay and loss, without averages of weights. All its layers are trained
    alike from the start: what a recipe says about layers is for pretrained ones. net: on its device. order: of the
    candidates. num_steps: of the whole run.
    """

    def __init__(self, recipe: Recipe, proxy_filter: ProxyFilter, net: nn.Module, order: Order, num_steps: int) -> None:
        self._filter, self._num_steps = proxy_filter, num_steps
        recipe = replace(recipe, layer_decay=1.0, frozen_epochs=0.0, thaw_epochs=0.0)
        self._step = TrainStep(recipe, net.train(), make_optimizers(net, recipe), order)
        self._seed, self._device, self._draws = order.seed, next(net.parameters()).device, may_draw(net)
        self.normalise = self._step.normalise

    def keep(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Returns int64 [K], which images of the batch of a step are kept, and a scalar, the sum of all losses.

        K of N images, those with the highest loss before the update; of equal losses, the later images. In every
        `update_every_steps`-th step, from the first on, the proxy then learns from these. Nothing waits for the device.
        """
        updates = step % self._filter.update_every_steps == 0
        # Dropout depends on (seed, step) alone; torch's generators are afterwards as they were.
        dropout = _seeded(self._seed, self._device, step, _DROPOUT) if self._draws else nullcontext()
        with torch.set_grad_enabled(updates), dropout:
            losses = self._step.losses(batch)
        kept = losses.detach().argsort(stable=True)[-self._filter.num_kept(len(losses)) :]
        if updates:
            self._step.backward(losses[kept].sum() / len(kept))
            self._step.update(self._step.gradient_norm(), step, self._num_steps)
        return kept, losses.detach().sum()


@contextmanager
def _seeded(seed: int, device: torch.device, step: int, purpose: int) -> Iterator[None]:
    """Seeds torch's generators for a block, and puts them back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Halved, because torch takes a signed 64-bit seed.
        torch.manual_seed(int(bits(seed, step, Stream.PROXY, np.array([purpose], np.uint64))[0, 0] >> np.uint64(1)))
        yield


def make_proxy(recipe: Recipe, proxy_filter: ProxyFilter, batches: Batches, seed: int) -> Proxy:
    """Returns a new proxy on the device of the batches; its first weights depend on the seed and the data alone."""
    device = batches.device
    with _seeded(seed, device, 0, _FIRST_WEIGHTS):
        net = make_model(proxy_filter.model, len(batches.data.classes), recipe.image_size_px)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    order = batches.order
    proxy = Proxy(recipe, proxy_filter, net, order, recipe.epochs * order.steps_per_epoch)
    if isinstance(net, Whitened):
        net.fit_whitening(proxy.normalise(batches.whitening_images().to(device)))
    return proxy


def proxy_operations(recipe: Recipe, proxy_filter: ProxyFilter, num_classes: int, order: Order) -> float:
    """Returns the operations of choosing a run's images: all forward, and those of every few steps backward, too."""
    with torch.device("meta"):
        net = make_model(proxy_filter.model, num_classes, recipe.image_size_px)
    forward, both = (operations_per_image(net, recipe.image_size_px, backward) for backward in (False, True))
    num_steps = recipe.epochs * order.steps_per_epoch
    updates = -(-num_steps // proxy_filter.update_every_steps) / num_steps
    return recipe.epochs * order.num_rows * (forward + updates * (both - forward))


def chosen_rows(
    recipe: Recipe, proxy_filter: ProxyFilter, batches: Batches, seed: int
) -> Iterator[npt.NDArray[np.bool_]]:
    """Trains a proxy, and yields bool [N] for each epoch: whether the row at each place of the order is kept.

    batches: of a run; this process makes all of each global batch. Raises DivergedError if a loss isn't finite.
    """
    proxy, order = make_proxy(recipe, proxy_filter, batches, seed), batches.order
    stream = batches.candidates(recipe.epochs * order.steps_per_epoch)
    for epoch in range(recipe.epochs):
        kept, sums, positions = [], [], []
        for number in range(order.steps_per_epoch):
            batch = next(stream).to(batches.device)
            of_batch, total = proxy.keep(batch, epoch * order.steps_per_epoch + number)
            kept.append(of_batch)
            sums.append(total)
            positions.append(order.span(number)[0] + batch.positions)
        if not bool(torch.stack(sums).isfinite().all()):  # once an epoch: the host waits for the device here
            raise DivergedError(
                f"the loss of proxy_filter.model={proxy_filter.model} isn't finite in epoch {epoch}; "
                "lower learning_rate, or set proxy_filter=none"
            )
        ends = np.cumsum([len(each) for each in kept])
        of_all = np.split(torch.cat(kept).cpu().numpy(), ends[:-1])
        mask = np.zeros(order.num_rows, dtype=np.bool_)
        for places, chosen in zip(positions, of_all, strict=True):
            mask[places[chosen]] = True
        yield mask
