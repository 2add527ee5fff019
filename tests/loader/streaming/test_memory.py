"""Memory of a process that streams for long."""

import os

import psutil
import pytest

from pipeline import Loader

pytestmark = pytest.mark.long


def test_ten_thousand_batches_take_no_more_memory_than_five_hundred(tree_dataset: str) -> None:
    """Measured on 2026-11-27: 660 MB after 500, 661 MB after 10,000."""
    process, loader = psutil.Process(os.getpid()), Loader(tree_dataset, global_batch_size=17, size_px=24, device="cpu")
    memory: dict[int, float] = {}
    count = 0
    for mark in (500, 10_000):
        while count < mark:
            count += sum(1 for _ in loader)
        memory[mark] = process.memory_info().rss / 1e6
    assert memory[10_000] < memory[500] + 50
