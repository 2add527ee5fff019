"""One evaluation by several ranks: rank 0's running statistics count, and the parts become one, in row order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core.errors import ExactnessError
from pipeline.evaluation.distributed import predict_distributed
from pipeline.evaluation.inference import Predictor
from pipeline.loader.batch import Batch


class _Shifted(nn.Module):
    """Logits of two classes: the pixel, and a buffer as BatchNorm has them."""

    threshold: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        pixel = images[:, 0, 0, 0]
        return torch.stack([pixel, self.threshold.expand_as(pixel)], dim=1)


def batch(rows: list[int]) -> Batch:
    index = np.array(rows, dtype=np.int64)
    images = torch.tensor(rows, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return Batch(0, index, images, labels, index.astype(np.uint64), np.arange(len(rows)), index[:0])


def test_two_ranks_evaluate_as_one_does_with_the_buffers_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = predict_distributed(Predictor(_Shifted(2.5), nn.Identity(), 2), [batch([4, 5, 6, 7])], range(4, 8))
    other = Predictor(_Shifted(2.5), nn.Identity(), 2).predict([batch([5, 7])])
    asked: list[str] = []

    def broadcast(buffer: Tensor, source: int) -> None:
        assert source == 0
        buffer.fill_(2.5)  # what rank 0 has
        asked.append("broadcast")

    def gather(parts: list[Any], part: Any) -> None:
        parts[:] = [other, part]
        asked.append("gather")

    def left_out() -> list[int]:
        asked.append("left out")
        return []

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    mine = Predictor(_Shifted(9.0), nn.Identity(), 2)
    together = predict_distributed(mine, [batch([4, 6])], range(4, 8), 2, left_out)
    assert asked == ["broadcast", "gather", "left out"]  # all ranks: the same collectives in the same order
    assert together.row.tolist() == [4, 5, 6, 7]
    assert np.array_equal(together.probabilities, alone.probabilities)
    assert np.array_equal(together.classes, alone.classes)


def test_a_row_that_is_left_out_must_be_named() -> None:
    predictor = Predictor(_Shifted(2.5), nn.Identity(), 2)
    assert predict_distributed(predictor, [batch([0, 2])], range(3), left_out=lambda: [1]).row.tolist() == [0, 2]
    with pytest.raises(ExactnessError, match=r"evaluated 2 rows of 3: missing \[1\]"):
        predict_distributed(predictor, [batch([0, 2])], range(3))
