"""Memory of a process that streams for long."""

import os
import time
from functools import partial
from typing import Any

import psutil
import pytest

from pipeline import Loader
from pipeline.cluster.session import ray_session
from pipeline.config.augment import Augment
from pipeline.dataset import manifest
from pipeline.loader import transform as transform_module
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.streaming import ray_helpers
from pipeline.loader.streaming.helped import Columns, helped_source
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.ray_helpers import RayHelpers
from pipeline.loader.transform import Transform

pytestmark = pytest.mark.long


def memory_mb() -> float:
    return float(psutil.Process(os.getpid()).memory_info().rss / 1e6)


def test_ten_thousand_batches_take_no_more_memory_than_five_hundred(tree_dataset: str) -> None:
    """Measured on 2026-11-27: 660 MB after 500, 661 MB after 10,000."""
    loader = Loader(tree_dataset, global_batch_size=17, size_px=24, device="cpu")
    memory: dict[int, float] = {}
    count = 0
    for mark in (500, 10_000):
        while count < mark:
            count += sum(1 for _ in loader)
        memory[mark] = memory_mb()
    assert memory[10_000] < memory[500] + 50


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ten_thousand_batches_of_tasks_take_no_more_memory_than_five_hundred(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks on this node, as if it were another one, in several actors one after the other; threads are slow."""
    original: Any = vars(transform_module)["read_parts"]
    arrived = 0

    class Counting(RayHelpers):
        def arrived(self) -> list[tuple[int, Columns | None]]:
            nonlocal arrived
            found = super().arrived()
            arrived += sum(columns is not None for _, columns in found)
            return found

    def read(*arguments: Any) -> Any:
        time.sleep(0.1)
        return original(*arguments)

    monkeypatch.setattr(transform_module, "read_parts", read)  # in this process
    monkeypatch.setattr(ray_helpers, "_BATCHES_PER_ACTOR", 2500)
    split = manifest.load(tree_dataset).split("train")
    order = Order(split.row_group_rows, 3, 17, 2)
    view = Transform(24, 24, Augment((0.3, 1.0)), seed=3, decoder=best_decoder())
    plan = StreamPlan(tree_dataset, split, TrainSampler(order, 1_000_000), view)
    memory: dict[int, float] = {}
    with ray_session(1):
        batches = helped_source(plan, False, partial(Counting, plan, ()), 64 << 20)(lambda: False)
        for mark in (500, int(os.environ.get("TEST_BATCHES", "10000"))):
            while arrived < mark:
                next(batches)
            memory[mark] = memory_mb()
            print(f"{memory[mark]:.0f} MB after {mark:,} batches of tasks")
        batches.close()
    first, last = memory.values()
    assert last < first + 50
