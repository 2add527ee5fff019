"""Predictions of a network for batches of images, in float32, with or without several test views of each image."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.choices import LossName, TestViews
from pipeline.evaluation.predictions import TOP, Keep, Predictions, concatenate
from pipeline.loader.batch import Batch
from pipeline.models.device.settings import evaluation_settings
from pipeline.models.layers import last_layer
from pipeline.models.losses import sample_losses


def view_logits(model: nn.Module, images: Tensor, views: TestViews) -> Tensor:
    """Returns logits, float32 [N, C]: the mean over the test views of each image.

    images: float [N, 3, S, S], normalised. views: "none": the image itself. "flip": the image and its mirror image.
    "flip-and-shift": half of "flip", and half of the mean of "flip" over two copies shifted by one pixel, up and left
    and down and right, reflected at the border (Jordan, arXiv 2404.00498).
    """
    if views == "none":
        logits: Tensor = model(images).float()
        return logits
    both = 0.5 * (model(images).float() + model(images.flip(-1)).float())
    if views == "flip":
        return both
    padded, size = F.pad(images, (1, 1, 1, 1), "reflect"), images.shape[-1]
    shifted = [view_logits(model, padded[:, :, n : n + size, n : n + size], "flip") for n in (0, 2)]
    return 0.5 * both + 0.25 * (shifted[0] + shifted[1])


@dataclass(frozen=True)
class Predictor:
    """A network and how it is evaluated.

    net: maps float32 [N, 3, S, S] to logits [N, num_classes]. normalise: maps uint8 images to the network's input, on
    the network's device. loss: of each row, without label smoothing. views: the test views (`view_logits`). keep: what
    else to keep of each row: "logits", or "features", the inputs of the last layer for the first view.
    """

    net: nn.Module
    normalise: nn.Module
    num_classes: int
    loss: LossName = "cross-entropy"
    views: TestViews = "none"
    keep: Keep = "nothing"

    def predict(self, batches: Iterable[Batch]) -> Predictions:
        """Returns a line for each row of the batches, in their order. Leaves the network in evaluation mode."""
        # No autocast and no TF32: metrics must not depend on the precision that the run was trained with.
        self.net.eval()
        top = min(TOP, self.num_classes)
        inputs: list[Tensor] = []
        hook = None
        if self.keep == "features":
            hook = last_layer(self.net).register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        parts = [] if self.keep != "nothing" else [_no_predictions(top)]
        with evaluation_settings(), torch.inference_mode():
            for batch in batches:
                inputs.clear()  # one entry for each test view; the first view is kept
                logits = view_logits(self.net, self.normalise(batch.images), self.views)
                kept = logits if self.keep == "logits" else inputs[0] if self.keep == "features" else logits[:, :0]
                parts.append(self._lines(batch, logits, kept, top))
        if hook is not None:
            hook.remove()
        return concatenate(parts or [_no_predictions(top)])

    def _lines(self, batch: Batch, logits: Tensor, kept: Tensor, top: int) -> Predictions:
        probabilities, classes = logits.softmax(dim=1).topk(top, dim=1)
        losses = sample_losses(self.loss, logits, batch.labels.to(logits.device))
        return Predictions(
            batch.rows,
            batch.labels.cpu().numpy(),
            classes.cpu().numpy(),
            probabilities.cpu().numpy(),
            losses.double().cpu().numpy(),
            kept.float().cpu().numpy(),
        )


def _no_predictions(top: int) -> Predictions:
    none, floats = np.empty(0, dtype=np.int64), np.empty((0, top), np.float32)
    return Predictions(none, none, np.empty((0, top), np.int64), floats, np.empty(0), floats[:, :0])
