"""The predictor of a batch prediction: an actor that holds the network, on a GPU where it has one."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.choices import TestViews
from pipeline.evaluation.predictions import TOP
from pipeline.models.load import TrainedModel

Arrays = dict[str, npt.NDArray[Any]]


class PredictWorker:
    """A callable class for Ray Data's pool of actors. threads: for torch, on a CPU."""

    def __init__(self, model: TrainedModel, views: TestViews, threads: int) -> None:
        self._views, self._top = views, min(TOP, len(model.classes))
        self._failure: Exception | None = None
        try:
            self._load(model, threads)
        except Exception as error:  # raised by the first call: of an actor whose start fails, Ray keeps the text alone
            self._failure = error

    def _load(self, model: TrainedModel, threads: int) -> None:
        import torch  # here, because the driver does not need it

        from pipeline.evaluation.batch_predict.model_failures import tagged
        from pipeline.loader.normalise import Normalise
        from pipeline.models.load import load_net

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        with tagged():
            self._net = load_net(model, self._device)
        self._normalise = Normalise(model.recipe.pixel_mean, model.recipe.pixel_std).to(self._device)

    def __call__(self, batch: Arrays) -> Arrays:
        """Returns one row: unit, error and content as they came; classes int64 and probabilities float32 [1, N, K],
        best first; seconds float64 [1] that the network took for the N images.

        batch: a row of `DecodeTask`. Raises what loading the network raised, and ModelFailedError if it can't be
        applied to the images.
        """
        import torch

        from pipeline.evaluation.batch_predict.model_failures import tagged
        from pipeline.evaluation.inference import view_logits
        from pipeline.models.device.settings import evaluation_settings

        if self._failure is not None:
            raise self._failure
        start = time.perf_counter()
        with evaluation_settings(), torch.inference_mode(), tagged():
            images = torch.from_numpy(batch["image"][0]).permute(0, 3, 1, 2)
            logits = view_logits(self._net, self._normalise(images), self._views)
            probabilities, classes = logits.softmax(dim=1).topk(self._top, dim=1)
        found = {"classes": classes.cpu().numpy()[None], "probabilities": probabilities.cpu().numpy()[None]}
        seconds = np.array([time.perf_counter() - start])  # after the copies, which wait for the device
        return {**{name: batch[name] for name in ("unit", "error", "content")}, "seconds": seconds, **found}
