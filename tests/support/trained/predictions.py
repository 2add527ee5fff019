"""Predictions: drawn at random, with known mistakes, and of a real evaluation."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.dataset import manifest
from pipeline.evaluation.certificate import Certificate, certify
from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.runner import EvaluateJob, run_evaluation
from pipeline.loader.batch import Batch
from pipeline.models.load import find_model

CLASSES = tuple("abcdefg")


def random_predictions(num_rows: int = 500) -> tuple[Predictions, np.ndarray]:
    """Returns predictions from random logits, and the probabilities: float32 [N, 7]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, 7, generator=generator)
    labels = torch.randint(0, 7, (num_rows,), generator=generator)
    rows = np.arange(num_rows)
    batch = Batch(0, rows, logits[:, :, None, None], labels, rows.astype(np.uint64), rows, rows[:0])
    return Predictor(nn.Flatten(), nn.Identity(), 7).predict([batch]), logits.softmax(1).numpy()


def part(rows: list[int]) -> Predictions:
    """Returns predictions of these rows, all of class 0, right and without probability."""
    none = np.zeros((len(rows), 2))
    labels = np.zeros(len(rows), np.int64)
    return Predictions(
        np.array(rows, np.int64), labels, none.astype(np.int64), none.astype(np.float32), none[:, 0], none[:, :0]
    )


def predictions(right: np.ndarray, sure: float = 0.9) -> Predictions:
    """right: bool [N]. Returns predictions for ten classes that are right where told, each with probability `sure`."""
    rows = np.arange(len(right))
    label = rows % 10
    classes = np.stack([np.where(right, label, (label + 1) % 10), (label + 2) % 10], axis=1)
    probabilities = np.tile(np.array([sure, 1 - sure], np.float32), (len(right), 1))
    return Predictions(rows, label, classes, probabilities, np.zeros(len(right)), np.empty((len(right), 0), np.float32))


def evaluated(trained: str, dataset: str, out: Path, **changes: object) -> Certificate:
    """Evaluates a run on a data set, writes the result to `out`, and returns its certificate."""
    job = EvaluateJob(trained, dataset, str(out), **changes)
    run_evaluation(job)
    return certify(job, manifest.load(dataset), find_model(trained))[0]
