"""What a network looks at: Grad-CAM and integrated gradients (by Captum), its first filters, and whether the pictures
depend on the network at all.

The last is the sanity check of Adebayo et al. (arXiv 1810.03292): explanations of the same images by the same network
with random weights must be others. Those that aren't show edges of the image, not what was learnt.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import load_index
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.runner import EvaluateJob
from pipeline.loader.normalise import Normalise
from pipeline.loader.transform import evaluation_transform
from pipeline.models.layers import convolutions
from pipeline.models.load import TrainedModel, load_net
from pipeline.reporting.charts import heat_picture, pixel_picture

Maps = npt.NDArray[np.float32]
METHODS = ("Grad-CAM", "integrated gradients")
_STEPS = 32  # of the integral
_PICTURES = 8  # hits, and as many misses


def grad_cam(net: nn.Module, images: Tensor, classes: Tensor) -> Maps:
    """images: float32 [N, 3, S, S], normalised; classes: int64 [N]. Returns float32 [N, S, S] >= 0.

    What the last convolution with more than one place to look at says for a class (Selvaraju et al., arXiv 1610.02391).
    """
    from captum.attr import LayerAttribution, LayerGradCam

    layer = _last_convolution(net, images[:1])
    found = LayerGradCam(net, layer).attribute(images, target=classes, relu_attributions=True)
    return LayerAttribution.interpolate(found, images.shape[-2:], "bilinear").sum(dim=1).detach().cpu().numpy()


def integrated_gradients(net: nn.Module, images: Tensor, classes: Tensor) -> Maps:
    """images: float32 [N, 3, S, S], normalised; classes: int64 [N]. Returns float32 [N, S, S] >= 0: the size of each
    pixel's share of the logit, on the way from the mean colour (Sundararajan et al., arXiv 1703.01365).
    """
    from captum.attr import IntegratedGradients

    shares = IntegratedGradients(net).attribute(
        images, torch.zeros_like(images), target=classes, n_steps=_STEPS, internal_batch_size=max(len(images), 64)
    )
    return shares.abs().sum(dim=1).detach().float().cpu().numpy()


EXPLAIN: dict[str, Callable[[nn.Module, Tensor, Tensor], Maps]] = dict(
    zip(METHODS, (grad_cam, integrated_gradients), strict=True)
)


def _last_convolution(net: nn.Module, image: Tensor) -> nn.Module:
    """Returns the last convolution whose output has several places; of a network without one, the very last."""
    sizes: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: sizes.__setitem__(layer, out.shape[-1]))
        for layer in convolutions(net)
    ]
    with torch.inference_mode():
        net(image)
    for hook in hooks:
        hook.remove()
    several = [layer for layer, size in sizes.items() if size > 1]
    return several[-1] if several else list(sizes)[-1]


def first_filters(net: nn.Module, most: int = 64) -> Maps | None:
    """Returns float32 [K, h, w, 3] in [0, 1]: the first convolution's kernels, each stretched to the full range.

    None where it doesn't look at the three colours.
    """
    layers = convolutions(net)
    if not layers or layers[0].in_channels != 3:
        return None
    kernels = layers[0].weight.detach().float().cpu()[:most]
    low, high = kernels.amin(dim=(1, 2, 3), keepdim=True), kernels.amax(dim=(1, 2, 3), keepdim=True)
    return ((kernels - low) / (high - low).clamp(min=1e-8)).permute(0, 2, 3, 1).numpy()


# --- whether they depend on the network ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sanity:
    """How alike the explanations of one method are before and after weights are made random.

    similarity: mean over images of Spearman's rank correlation of |map|, 1 for the same; random: which weights.
    """

    method: str
    random: str
    similarity: float
    images: int

    @property
    def depends(self) -> bool:
        """Whether the explanation is another one for another network, as it has to be."""
        return self.similarity < 0.5


def randomised(net: nn.Module, head_only: bool, seed: int = 0) -> nn.Module:
    """Returns a copy with weights of the last layer, or of all layers, drawn anew as each layer does at its start."""
    twin = copy.deepcopy(net)
    layers = [m for m in twin.modules() if callable(getattr(m, "reset_parameters", None))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers[-1:] if head_only else layers:
            layer.reset_parameters()  # type: ignore[operator]
    return twin


def sanity(net: nn.Module, images: Tensor, classes: Tensor, methods: dict[str, Callable[..., Maps]]) -> list[Sanity]:
    """Returns the check of each method, with the last layer and with all layers made random."""
    lines = []
    for name, method in methods.items():
        own = method(net, images, classes)
        for what, head_only in (("last layer", True), ("all layers", False)):
            other = method(randomised(net, head_only), images, classes)
            lines.append(Sanity(name, what, rank_correlation(own, other), len(images)))
    return lines


def rank_correlation(one: Maps, other: Maps) -> float:
    """one, other: float [N, ...]. Returns the mean over N of Spearman's rank correlation; 0 for a flat map."""
    from scipy.stats import spearmanr

    found = []
    for a, b in zip(one.reshape(len(one), -1), other.reshape(len(other), -1), strict=True):
        flat = a.min() == a.max() or b.min() == b.max()
        found.append(0.0 if flat else float(spearmanr(a, b).statistic))
    return float(np.mean(found))


# --- for the report --------------------------------------------------------------------------------------------------


def explain(job: EvaluateJob, data: Manifest, model: TrainedModel, predictions: Predictions) -> dict[str, Any]:
    """Returns hits and misses (pictures as data URIs: the image, and what each method marks), the first filters, and
    the sanity check of each method (`Sanity` as dictionaries).

    Hits are the first rows that are right, a random sample; misses those of which the model is most sure.
    """
    hits = np.flatnonzero(predictions.correct)[:_PICTURES]
    wrong = np.flatnonzero(~predictions.correct)
    misses = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:_PICTURES]
    places = np.concatenate([hits, misses])
    split = data.split(job.split)
    rows = predictions.row[places]
    pixels = evaluation_transform(model.recipe, job.decoder).load(load_index(job.dataset, split), rows, 0)
    keys = read_rows(job.dataset, split, rows, ("key",))["key"].to_pylist()
    net = _differentiable(load_net(model))
    images = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    best = torch.from_numpy(predictions.classes[places, 0])
    maps = []
    for number, method in enumerate(EXPLAIN.values()):
        job.progress("explain", number, len(EXPLAIN) + 1)
        maps.append(method(net, images, best))
    job.progress("explain", len(EXPLAIN), len(EXPLAIN) + 1)
    checks = sanity(net, images, best, EXPLAIN)
    job.progress("explain", len(EXPLAIN) + 1, len(EXPLAIN) + 1)
    filters = first_filters(net)
    lines = [
        {
            "key": keys[number],
            "actual": data.classes[predictions.label[place]],
            "predicted": data.classes[predictions.classes[place, 0]],
            "probability": float(predictions.probabilities[place, 0]),
            "pictures": [pixel_picture(pixels[number]), *(heat_picture(pixels[number], m[number]) for m in maps)],
        }
        for number, place in enumerate(places)
    ]
    return {
        "hits": lines[: len(hits)],
        "misses": lines[len(hits) :],
        "filters": [] if filters is None else [pixel_picture((255 * each).astype(np.uint8), 48) for each in filters],
        "sanity": [{**asdict(each), "depends": each.depends} for each in checks],
    }


def _differentiable(net: nn.Module) -> nn.Module:
    """Has no layer write over what another one made: hooks look at that later."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net.eval()
