"""The last layer of a pretrained network, fitted to features: each image is computed once, forward alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.recipe import Recipe
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


def fit_head(net: nn.Module, recipe: Recipe, batches: Batches, progress: Progress, beat: Callable[[str], None]) -> None:
    """Fits the last layer to the features of the training images, by logistic regression. All ranks together.

    Each image is computed once, augmented as in training, but not mixed. net: pretrained; it is moved to the batches'
    device. Its layers are as in evaluation, so that features don't depend on the batch. All features are kept in
    memory, 4 bytes a number. beat: called with what is done, now and then.
    """
    net.to(batches.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    # With several versions of an image in a batch, so many epochs are one pass over all images.
    steps = recipe.repeats * batches.order.steps_per_epoch
    parts = []
    with evaluation_settings():
        for number, part in enumerate(_features(net, recipe, batches, steps), 1):
            parts.append(part)
            progress("features", number, steps)
            beat(f"features of batch {number}")
    of_rank = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
    gathered = gather_objects(of_rank, batches.world_size)
    features, labels, rows = (np.concatenate(each) for each in zip(*gathered, strict=True))
    order = np.argsort(rows, kind="stable")  # whichever rank computed them
    weight, bias = fit_linear(features[order], labels[order], len(batches.data.classes))
    head: Any = last_layer(net)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))


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


def fit_linear(features: Floats, labels: Ints, num_classes: int) -> tuple[Floats, Floats]:
    """Returns the weights [C, D] and biases [C] of the logistic regression, which classifies features as they are.

    features: float32 [N, D]. labels: int64 [N], each in [0, C). A class without images gets weights of 0 and a bias by
    which it is never the likeliest; nothing is learnt where there is one class alone.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to load

    weight, bias = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    present = np.unique(labels)
    if len(present) > 1:
        mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
        fitted = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MOST_ITERATIONS)
        fitted.fit((features - mean) / deviation, labels)
        rows, offsets = fitted.coef_ / deviation, fitted.intercept_
        if len(present) == 2:  # one line alone, of the second class against the first
            rows, offsets = np.stack([-rows[0] / 2, rows[0] / 2]), np.array([-offsets[0] / 2, offsets[0] / 2])
        absent = np.setdiff1d(np.arange(num_classes), present)
        weight[present], bias[present] = rows, offsets - rows @ mean
        bias[absent] = bias[present].min() - 1e3
    return weight.astype(np.float32), bias.astype(np.float32)
