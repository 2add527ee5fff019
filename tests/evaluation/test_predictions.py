"""Predictions: merged in row order, each row once; metrics equal scikit-learn's and depend on no number of workers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score

from pipeline.config.choices import CIFAR_MEAN, CIFAR_STD
from pipeline.core.errors import ExactnessError
from pipeline.dataset import manifest
from pipeline.evaluation.inference import Predictor
from pipeline.evaluation.metrics import basic_metrics
from pipeline.evaluation.predictions import merge
from pipeline.loader.normalise import Normalise
from pipeline.loader.resident import load_resident, resident_batches
from pipeline.loader.samplers import EvaluationSampler
from pipeline.loader.transform import Transform
from pipeline.models.small_networks import FastResNet
from tests.support.trained.predictions import CLASSES, part, random_predictions


def test_metrics_are_scikit_learns() -> None:
    predictions, probabilities = random_predictions()
    ours, labels = basic_metrics(predictions, CLASSES), predictions.label
    best = probabilities.argmax(1)
    assert ours["top1"] == accuracy_score(labels, best)
    assert ours["correct"] == accuracy_score(labels, best, normalize=False)
    assert ours["top5"] == top_k_accuracy_score(labels, probabilities, k=5)
    assert ours["loss"] == pytest.approx(log_loss(labels, probabilities.astype(np.float64)), rel=1e-6)
    assert np.array_equal(ours["confusion_matrix"], confusion_matrix(labels, best))
    recalls = [value["recall"] for value in ours["per_class"].values()]
    assert recalls == pytest.approx(recall_score(labels, best, average=None))
    assert sum(value["rows"] for value in ours["per_class"].values()) == 500


def test_parts_are_merged_in_row_order() -> None:
    assert merge([part([2, 0]), part([]), part([1])], range(3)).row.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1], [1, 2]], r"more than once \[1\]"),
        ([[0], [2]], r"missing \[1\]"),
        ([[0, 1, 2], [7]], r"foreign \[7\]"),
    ],
)
def test_a_doubled_missing_or_foreign_row_stops_the_evaluation(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ExactnessError, match=message):
        merge([part(some) for some in rows], range(3))


def test_rows_that_are_left_out_must_not_be_there_and_the_others_must() -> None:
    assert merge([part([2]), part([0])], range(3), [1]).row.tolist() == [0, 2]
    with pytest.raises(ExactnessError, match=r"more than once \[1\]"):
        merge([part([0, 1, 2])], range(3), [1])
    with pytest.raises(ExactnessError, match=r"missing \[2\]"):
        merge([part([0])], range(3), [1])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_totals_are_the_same_to_the_last_bit_for_any_number_of_workers(digits_dataset: str, world_size: int) -> None:
    split = manifest.load(digits_dataset).split("val")
    view = Transform(32, 32)
    data = load_resident(digits_dataset, split, view)
    torch.manual_seed(0)
    model, normalise = FastResNet(10).to(memory_format=torch.channels_last), Normalise((0.3,) * 3, (0.35,) * 3)

    def totals(num_workers: int) -> dict[str, object]:
        parts = []
        for rank in range(num_workers):
            units = EvaluationSampler(split.rows, 50, num_workers, rank)
            parts.append(Predictor(model, normalise, 10).predict(resident_batches(data, units, view)))
        return basic_metrics(merge(parts, range(split.rows)), tuple("0123456789"))

    assert totals(world_size) == totals(1)


def test_normalising_is_the_textbooks() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    out = Normalise(CIFAR_MEAN, CIFAR_STD)(images)
    assert torch.allclose(out, (images / 255 - mean) / std, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
