"""Batches taken ahead by a thread: all of them, in order, bounded, and nothing left behind."""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.errors import DatasetError
from pipeline.loader.batch import Batch
from pipeline.loader.device.copy_ahead import copied_ahead

CPU = torch.device("cpu")


def batch(number: int, count: int = 2) -> Batch:
    rows = np.arange(count)
    images = torch.full((count, 4, 4, 3), number, dtype=torch.uint8).permute(0, 3, 1, 2)
    return Batch(number, rows, images, torch.full((count,), number), rows.astype(np.uint64), rows, rows[:0])


class Source:
    """Yields batches, and notes how many were taken and whether it was closed, and in which thread."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error, self.taken, self.closed_by = count, error, 0, ""

    def __call__(self, is_closed: Callable[[], bool]) -> Generator[Batch]:
        try:
            for number in range(self.count):
                self.taken += 1
                yield batch(number)
            if self.error is not None:
                raise self.error
        finally:
            self.closed_by = threading.current_thread().name


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "copy-ahead"]


def test_every_batch_comes_once_in_order_and_the_thread_ends() -> None:
    source = Source(20)
    assert [each.index for each in copied_ahead(source, CPU)] == list(range(20))
    assert source.closed_by == "copy-ahead"
    assert not threads()


@pytest.mark.parametrize("num_ahead", [1, 2, 4])
def test_no_more_batches_are_taken_than_said(num_ahead: int) -> None:
    source = Source(50)
    batches = copied_ahead(source, CPU, num_ahead)
    for done in range(1, 6):
        next(batches)
        deadline = time.monotonic() + 5
        while source.taken < done + num_ahead and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert source.taken == done + num_ahead
    batches.close()
    assert not threads()
    assert source.closed_by == "copy-ahead"


def test_what_the_loader_raises_arrives_as_itself_after_the_batches_before_it() -> None:
    error = DatasetError("row 7: the bytes have changed")
    batches = copied_ahead(Source(3, error), CPU)
    assert [next(batches).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert caught.value is error
    assert not threads()


def test_a_loader_that_cannot_begin_says_why() -> None:
    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        raise DatasetError("no such data set")

    with pytest.raises(DatasetError, match="no such data set"):
        next(copied_ahead(source, CPU))
    assert not threads()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_loop_that_is_left_by_an_error_leaves_no_thread(kind: type[BaseException]) -> None:
    source = Source(50)

    def loop() -> None:
        for each in copied_ahead(source, CPU):
            if each.index == 3:
                raise kind

    with pytest.raises(kind):
        loop()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
    assert source.closed_by == "copy-ahead"


def test_a_source_that_waits_learns_that_nobody_listens_any_more() -> None:
    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        yield batch(0)
        while not is_closed():
            time.sleep(0.01)

    batches = copied_ahead(source, CPU)
    next(batches)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 2
    assert not threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_whole_though_buffers_are_reused() -> None:
    device, sizes = torch.device("cuda"), [7, 8, 8, 3, 8, 8, 9, 8] * 20

    def source(is_closed: Callable[[], bool]) -> Generator[Batch]:
        for number, count in enumerate(sizes):
            made = batch(number % 251, count)
            yield replace(made, index=number, images=made.images.repeat(1, 1, 64, 64))

    for number, each in enumerate(copied_ahead(source, device)):
        arrived = each.to(device)
        torch.cuda._sleep(200_000)  # the step is slower than the copies
        assert arrived.images.is_contiguous(memory_format=torch.channels_last)
        assert bool((arrived.images == number % 251).all())
        assert arrived.labels.tolist() == [number % 251] * sizes[number]
    assert not threads()
