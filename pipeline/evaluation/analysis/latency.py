"""Latency of a network: the seconds from a decoded image to its class, one image at a time."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.evaluation.inference import view_logits
from pipeline.loader.normalise import Normalise
from pipeline.loader.transform import evaluation_transform
from pipeline.models.load import TrainedModel, load_net

_ROUNDS, _WARM_UP_ROUNDS = 30, 3


def prediction_seconds(models: Sequence[TrainedModel]) -> tuple[float, ...]:
    """Returns each model's median latency in seconds, on this process's GPU if it has one, else on the CPU.

    An image has the size and the test views that the model is evaluated with. The models are timed in turns, so that
    other load on the machine affects all of them alike.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = []
    for model in models:
        recipe = model.recipe
        size_px = evaluation_transform(recipe, "libjpeg").size_px  # nothing is decoded
        image = torch.randint(0, 256, (1, 3, size_px, size_px), dtype=torch.uint8, device=device)
        normalise = Normalise(recipe.pixel_mean, recipe.pixel_std).to(device)
        prepared.append((load_net(model, device), normalise, image, recipe.test_views))
    seconds = np.empty((_WARM_UP_ROUNDS + _ROUNDS, len(models)))
    with torch.inference_mode():
        for seconds_of_round in seconds:
            for number, (net, normalise, image, views) in enumerate(prepared):
                start = time.perf_counter()
                int(view_logits(net, normalise(image), views).argmax())  # int() waits for the GPU
                seconds_of_round[number] = time.perf_counter() - start
    return tuple(float(median) for median in np.median(seconds[_WARM_UP_ROUNDS:], axis=0))
