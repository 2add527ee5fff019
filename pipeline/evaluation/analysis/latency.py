"""Latency of a network: the seconds from a decoded image to its class, one image at a time."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.choices import TestViews
from pipeline.evaluation.inference import view_logits
from pipeline.loader.normalise import Normalise
from pipeline.loader.transform import evaluation_transform
from pipeline.models.load import TrainedModel, load_net

_LEAST_ROUNDS, _MOST_ROUNDS, _WARM_UP_ROUNDS = 30, 1000, 3
_SECONDS = 2.0  # of rounds beyond the least: a slice of the scheduler is as long as a few small networks'


def prediction_seconds(models: Sequence[TrainedModel]) -> tuple[float, ...]:
    """Returns each model's median latency in seconds, on this process's GPU if it has one, else on the CPU.

    An image has the size and the test views that the model is evaluated with. The models are timed in turns, so that
    other load on the machine affects all of them alike; those whose networks are the same have one latency, the median
    of all their rounds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = []
    for model in models:
        recipe = model.recipe
        size_px = evaluation_transform(recipe, "libjpeg").size_px  # nothing is decoded
        image = torch.randint(0, 256, (1, 3, size_px, size_px), dtype=torch.uint8, device=device)
        normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
        prepared.append((load_net(model, device), normalise, image, recipe.test_views))
    rounds, begun = list[list[float]](), time.perf_counter()
    with torch.inference_mode():
        while len(rounds) < _WARM_UP_ROUNDS + _LEAST_ROUNDS or (
            len(rounds) < _MOST_ROUNDS and time.perf_counter() - begun < _SECONDS
        ):
            rounds.append([_seconds_of(*each) for each in prepared])
    seconds = np.array(rounds[_WARM_UP_ROUNDS:])
    networks = [
        (model.recipe.model, views, image.shape, _shapes(net))
        for model, (net, _, image, views) in zip(models, prepared, strict=True)
    ]
    same = [[network == other for other in networks] for network in networks]
    return tuple(float(np.median(seconds[:, columns])) for columns in same)


def _seconds_of(net: nn.Module, normalise: nn.Module, image: Tensor, views: TestViews) -> float:
    start = time.perf_counter()
    int(view_logits(net, normalise(image), views).argmax())  # int() waits for the GPU
    return time.perf_counter() - start


def _shapes(net: nn.Module) -> list[tuple[str, torch.Size]]:
    """Returns names and shapes of a network's tensors, which tell those of one name apart."""
    return [(name, tensor.shape) for name, tensor in net.state_dict().items()]
