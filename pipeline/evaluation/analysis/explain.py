"""Explanations of predictions: Grad-CAM and integrated gradients (by Captum), and the first filters of the network."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import load_index
from pipeline.evaluation.analysis.sanity_check import Maps, Method, check_sanity
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.loader.normalise import Normalise
from pipeline.loader.transform import evaluation_transform
from pipeline.models.layers import convolutions
from pipeline.models.load import TrainedModel, load_net
from pipeline.reporting.charts import heat_picture, pixel_picture

_STEPS = 32  # of the integral
_PICTURES = 8  # hits, and as many misses


def grad_cam(net: nn.Module, images: Tensor, classes: Tensor) -> Maps:
    """Returns Grad-CAM maps, float32 [N, S, S] >= 0 (Selvaraju et al., arXiv 1610.02391).

    images: float32 [N, 3, S, S], normalised; classes: int64 [N]. The maps are of the last convolution whose output has
    more than one position, resized to the image.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    layer = _last_convolution(net, images[:1])
    found = LayerGradCam(net, layer).attribute(images, target=classes, relu_attributions=True)
    return LayerAttribution.interpolate(found, images.shape[-2:], "bilinear").sum(dim=1).detach().cpu().numpy()


def integrated_gradients(net: nn.Module, images: Tensor, classes: Tensor) -> Maps:
    """Returns integrated gradients, float32 [N, S, S] >= 0 (Sundararajan, Taly and Yan, arXiv 1703.01365).

    images: float32 [N, 3, S, S], normalised; classes: int64 [N]. The baseline is the mean colour, 0 after normalising;
    a value is the absolute attribution of a pixel, summed over its colours.
    """
    from captum.attr import IntegratedGradients

    attributions = IntegratedGradients(net).attribute(
        images, torch.zeros_like(images), target=classes, n_steps=_STEPS, internal_batch_size=max(len(images), 64)
    )
    return attributions.abs().sum(dim=1).detach().float().cpu().numpy()


METHODS: dict[str, Method] = {"Grad-CAM": grad_cam, "integrated gradients": integrated_gradients}


def _last_convolution(net: nn.Module, image: Tensor) -> nn.Module:
    """Returns the last convolution whose output is larger than 1 x 1; if there is none, the last convolution."""
    sizes: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: sizes.__setitem__(layer, out.shape[-1]))
        for layer in convolutions(net)
    ]
    with torch.inference_mode():
        net(image)
    for hook in hooks:
        hook.remove()
    spatial = [layer for layer, size in sizes.items() if size > 1]
    return spatial[-1] if spatial else list(sizes)[-1]


def first_filters(net: nn.Module, max_filters: int = 64) -> Maps | None:
    """Returns the kernels of the first convolution, float32 [K, h, w, 3], each scaled to [0, 1], K <= max_filters.

    None if the first convolution does not take the three colours.
    """
    layers = convolutions(net)
    if not layers or layers[0].in_channels != 3:
        return None
    kernels = layers[0].weight.detach().float().cpu()[:max_filters]
    low, high = kernels.amin(dim=(1, 2, 3), keepdim=True), kernels.amax(dim=(1, 2, 3), keepdim=True)
    return ((kernels - low) / (high - low).clamp(min=1e-8)).permute(0, 2, 3, 1).numpy()


def explain(job: EvaluateJob, data: Manifest, model: TrainedModel, predictions: Predictions) -> dict[str, Any]:
    """Returns explanations of some images, the first filters, and the sanity check of each method.

    hits, misses: lists of key, actual, predicted, probability and pictures (data URIs: the image, then the map of each
    method). Hits are the first rows that are correct, which is a random sample; misses are the wrong rows with the
    highest probability. filters: pictures. sanity: `SanityCheck` as dictionaries. job.progress is called meanwhile.
    """
    hits = np.flatnonzero(predictions.correct)[:_PICTURES]
    wrong = np.flatnonzero(~predictions.correct)
    misses = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:_PICTURES]
    chosen = np.concatenate([hits, misses])
    split, rows = data.split(job.split), predictions.row[chosen]
    pixels = evaluation_transform(model.recipe, job.decoder).load(load_index(job.dataset, split), rows, 0)
    keys = read_rows(job.dataset, split, rows, ("key",))["key"].to_pylist()
    net = without_inplace(load_net(model))
    images = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    best = torch.from_numpy(predictions.classes[chosen, 0])
    maps, num_stages = [], len(METHODS) + 1
    for number, method in enumerate(METHODS.values()):
        job.progress("explain", number, num_stages)
        maps.append(method(net, images, best))
    job.progress("explain", len(METHODS), num_stages)
    checks = check_sanity(net, images, best, METHODS)
    job.progress("explain", num_stages, num_stages)
    lines = [
        {
            "key": keys[number],
            "actual": data.classes[predictions.label[index]],
            "predicted": data.classes[predictions.classes[index, 0]],
            "probability": float(predictions.probabilities[index, 0]),
            "pictures": [pixel_picture(pixels[number]), *(heat_picture(pixels[number], m[number]) for m in maps)],
        }
        for number, index in enumerate(chosen)
    ]
    filters = first_filters(net)
    return {
        "hits": lines[: len(hits)],
        "misses": lines[len(hits) :],
        "filters": [] if filters is None else [pixel_picture((255 * each).astype(np.uint8), 48) for each in filters],
        "sanity": [{**asdict(each), "depends": each.depends} for each in checks],
    }


def without_inplace(net: nn.Module) -> nn.Module:
    """Returns the network itself, in evaluation mode, with no layer that overwrites its input.

    Captum's hooks read activations after the forward pass; an in-place ReLU would have changed them by then.
    """
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net.eval()
