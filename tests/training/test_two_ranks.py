"""Two ranks in processes of their own: BatchNorm's statistics are sent around for an evaluation, not in every step."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.evaluation.distributed import predict_distributed
from pipeline.evaluation.inference import Predictor
from pipeline.loader.batch import Batch
from pipeline.training.setup import DDP_SETTINGS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layers(images).mean((2, 3)))
        return logits


def train(rank: int, settings: dict[str, bool]) -> Net:
    """Returns a network after four steps, in each of which the ranks have other images."""
    torch.manual_seed(0)
    net = Net()
    model = DistributedDataParallel(net, **settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank)) + rank
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return net


def values(net: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in net.state_dict().items()}


def evaluate(net: nn.Module, rank: int) -> list[list[float]]:
    """Returns the probabilities of four rows, of which each rank predicts two."""
    rows = np.array([rank, 2 + rank])
    images = torch.stack([torch.full((3, 8, 8), float(row)) for row in rows])
    labels = torch.zeros(2, dtype=torch.int64)
    batch = Batch(0, rows, images, labels, rows.astype(np.uint64), np.arange(2), rows[:0])
    found = predict_distributed(Predictor(net, nn.Identity(), 3), [batch], range(4), 2)
    return found.probabilities.tolist()


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ours = train(rank, DDP_SETTINGS)
    found = {"trained": values(ours), "by default": values(train(rank, {})), "predicted": evaluate(ours, rank)}
    found["evaluated"] = values(ours)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_both_ranks_evaluate_with_the_statistics_that_rank_0_saves(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    mean = "layers.1.running_mean"
    assert first["trained"][mean] != second["trained"][mean]  # each rank keeps its own
    assert first["trained"] == first["by default"]  # what rank 0 saves, to the last bit
    assert second["evaluated"] == first["trained"] == first["evaluated"]
    assert first["predicted"] == second["predicted"]
    torch.manual_seed(0)
    alone = Net()
    alone.load_state_dict({name: torch.tensor(value) for name, value in first["trained"].items()})
    with torch.inference_mode():
        images = torch.stack([torch.full((3, 8, 8), float(row)) for row in range(4)])
        wanted, best = alone.eval()(images).softmax(1).topk(3, 1)
    assert torch.allclose(torch.tensor(first["predicted"]), wanted, atol=1e-6), best
