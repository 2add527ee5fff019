"""The last layer of a pretrained network, fitted to features: each image is computed once, forward alone."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError
from pipeline.core.progress import Progress
from pipeline.evaluation.distributed import gather_objects
from pipeline.loader.batch import Batch
from pipeline.loader.normalise import Normalise
from pipeline.models.batch_transforms import transform_batch
from pipeline.models.device.settings import evaluation_settings
from pipeline.models.layers import last_layer
from pipeline.training.worker_data import Batches

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Inverse strength of the L2 penalty, of features with a deviation of 1: scikit-learn's C. From 0.001 to 10 it makes no
# difference on photographs (docs/log.md).
_INVERSE_PENALTY = 0.01
_MOST_ITERATIONS = 1000
_BEAT_SECONDS = 1.0
_ABSENT_MARGIN = 10.0  # of the logits of classes without images below the likeliest one: a share of e^-10


def fit_head(net: nn.Module, recipe: Recipe, batches: Batches, progress: Progress, beat: Callable[[str], None]) -> None:
    """Fits the last layer to the features of the training images, by logistic regression. All ranks together.

    Each image is computed once, augmented as in training, but not mixed. net: pretrained; it is moved to the batches'
    device. Its layers are as in evaluation, so that features don't depend on the batch. beat: called with what is done,
    once a second during the fit. Each rank keeps all features in memory, 8 bytes a number at the most, and as much
    again on the way from other ranks. Raises CheckpointError for features that aren't finite.
    """
    net.to(batches.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    batches, parts = batches.without_repeats(), []
    steps = batches.order.steps_per_epoch
    with evaluation_settings():
        for number, part in enumerate(_features(net, recipe, batches, steps), 1):
            parts.append(part)
            progress("features", number, steps)
            beat(f"features of batch {number}")
        scale = _logit_scale(net, torch.zeros(1, 3, *[recipe.image_size_px] * 2, device=batches.device))
    head: Any = last_layer(net)
    features, labels, rows = _gathered(parts, batches.world_size)
    beat("the features of all ranks")
    _check_finite(features, rows)
    with _beating(beat, "the fit of the last layer"):
        weight, bias = fit_linear(features, labels, len(batches.data.classes), with_bias=head.bias is not None)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / scale))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias / scale))


@contextmanager
def _beating(beat: Callable[[str], None], activity: str) -> Iterator[None]:
    """Calls `beat` once a second meanwhile, from a thread: the fit is one call, of minutes for many features.

    It ends by itself, after `_MOST_ITERATIONS` at the latest, so nothing that hangs is kept alive.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_BEAT_SECONDS):
            beat(activity)

    thread = threading.Thread(target=repeat, daemon=True, name="beat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        beat(activity)


def _gathered(parts: list[tuple[Floats, Ints, Ints]], world_size: int) -> tuple[Floats, Ints, Ints]:
    """Returns features, labels and rows of all ranks in the order of rows, whichever rank computed them.

    `parts` is emptied: with it, there are two copies of the features at a time, not three.
    """
    of_rank = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    parts.clear()
    gathered = gather_objects(of_rank, world_size)
    features, labels, rows = of_rank if world_size == 1 else (np.concatenate(e) for e in zip(*gathered, strict=True))
    del gathered, of_rank
    order = np.argsort(rows, kind="stable")
    features = features[order]
    return features, labels[order], rows[order]


def _check_finite(features: Floats, rows: Ints) -> None:
    broken = rows[~np.isfinite(features.sum(axis=1))]
    if len(broken):
        raise CheckpointError(
            f"the pretrained network's features of {len(broken):,} of {len(rows):,} images aren't finite, row "
            f"{broken[0]}'s first; use other weights, or set fit_head=none"
        )


def _logit_scale(net: nn.Module, images: Tensor) -> float:
    """Returns the factor that the network multiplies its last layer's outputs by: 1 for most. images: any."""
    hook = last_layer(net).register_forward_hook(lambda _, __, output: torch.ones_like(output))
    try:
        with torch.inference_mode():
            return float(net(images).flatten()[0])
    finally:
        hook.remove()


def _features(net: nn.Module, recipe: Recipe, batches: Batches, steps: int) -> Iterator[tuple[Floats, Ints, Ints]]:
    """Yields the inputs of the last layer [N, D], labels and rows of each of this rank's batches."""
    normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(batches.device)
    augment = replace(recipe.augment, mixup_alpha=0.0, cutmix_alpha=0.0)
    inputs: list[Tensor] = []
    hook = last_layer(net).register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        for batch in batches.training(0, steps):
            inputs.clear()
            sent: Batch = batch.to(batches.device)
            with torch.inference_mode():
                net(transform_batch(sent, normalise, augment, batches.order.seed).images)
            yield inputs[0].float().cpu().numpy(), sent.labels.cpu().numpy(), batch.rows
    finally:
        hook.remove()


def fit_linear(features: Floats, labels: Ints, num_classes: int, with_bias: bool = True) -> tuple[Floats, Floats]:
    """Returns the weights [C, D] and biases [C] of the logistic regression, which classifies features as they are.

    features: finite float32 [N, D]; they are standardised in place. labels: int64 [N], each in [0, C). A class without
    images gets weights of 0 and a bias by which its logit lies 10 or more below the highest one of each image; nothing
    is learnt where there is one class alone. with_bias: False for biases of 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # takes a second to load

    weight, bias = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    present = np.unique(labels)
    if len(present) > 1:
        mean = features.mean(axis=0, dtype=np.float64) if with_bias else np.zeros(features.shape[1])
        features -= mean.astype(np.float32)
        squares = np.einsum("nd,nd->d", features, features, dtype=np.float64, casting="safe")  # without a larger copy
        deviation = np.sqrt(squares / len(features)) + 1e-6
        features /= deviation.astype(np.float32)
        fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MOST_ITERATIONS, fit_intercept=with_bias)
        with warnings.catch_warnings():  # the weights of the last iteration serve, too
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(features, labels)
        rows, offsets = fitted.coef_, np.broadcast_to(fitted.intercept_, len(fitted.coef_))
        if len(present) == 2:  # one line alone, of the second class against the first
            rows, offsets = np.stack([-rows[0] / 2, rows[0] / 2]), np.array([-offsets[0] / 2, offsets[0] / 2])
        weight[present] = rows / deviation
        if with_bias:
            absent = np.setdiff1d(np.arange(num_classes), present)
            bias[present] = offsets - weight[present] @ mean
            bias[absent] = (features @ rows.T + offsets).max(axis=1).min() - _ABSENT_MARGIN
    return weight.astype(np.float32), bias.astype(np.float32)
