"""Threads that make batches: memory is used again, one thread for torch in each, and a consumer may leave."""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.augment import Augment
from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index
from pipeline.loader import transform as transform_module
from pipeline.loader.batch import Batch
from pipeline.loader.decode import best_decoder
from pipeline.loader.device.copy_ahead import copied_ahead
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.streaming import threads
from pipeline.loader.streaming.buffers import ImageBuffers
from pipeline.loader.streaming.plan import ConsumerClosedError, StreamPlan
from pipeline.loader.streaming.threads import decode_threads, local_batches, thread_source
from pipeline.loader.transform import Transform

CROPS = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)


def plan_of(uri: str, batch_rows: int = 5, epochs: int = 2, spec: Augment = CROPS) -> StreamPlan:
    split = manifest.load(uri).split("train")
    order = Order(split.row_group_rows, 3, batch_rows, 2)
    sampler = TrainSampler(order, epochs * order.steps_per_epoch)
    return StreamPlan(uri, split, sampler, Transform(24, 24, spec, seed=3, decoder=best_decoder()))


def batches_of(plan: StreamPlan) -> Generator[Batch]:
    return local_batches(plan.uri, plan.split, plan.sampler, plan.transform)


def decoding() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("decode")]


def test_memory_is_used_again_and_never_while_somebody_holds_its_batch() -> None:
    buffers = ImageBuffers(pinned=False)
    first, second = buffers.take((2, 4, 4, 3)), buffers.take((2, 4, 4, 3))
    place = first.ctypes.data
    tensor = torch.utils.dlpack.from_dlpack(first).permute(0, 3, 1, 2)[1:]
    del first
    assert buffers.take((2, 4, 4, 3)).ctypes.data != place  # a view of the tensor is alive
    view = tensor.numpy()
    del tensor
    assert buffers.take((1, 4, 4, 3)).ctypes.data != place  # so is an array of it
    before = buffers.count
    del view
    small = buffers.take((1, 4, 4, 3))
    assert (small.ctypes.data, buffers.count) == (place, before)
    assert buffers.take((64, 4, 4, 3)).shape == (64, 4, 4, 3)
    assert second.shape == (2, 4, 4, 3)


def test_a_long_stream_takes_the_memory_of_a_few_batches(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ImageBuffers] = []

    class Noting(ImageBuffers):
        def __init__(self, pinned: bool) -> None:
            super().__init__(pinned)
            made.append(self)

    monkeypatch.setattr(threads, "ImageBuffers", Noting)
    monkeypatch.setattr(threads, "decode_threads", lambda remote: 2)
    count = sum(1 for _ in batches_of(plan_of(tree_dataset, epochs=20)))
    assert count == 220
    assert made[0].count <= 5  # three that are made ahead, one that is given out, one that the consumer drops


def test_batches_that_are_kept_keep_their_pixels(tree_dataset: str) -> None:
    plan = plan_of(tree_dataset, batch_rows=17)
    kept = list(batches_of(plan))
    index = load_index(tree_dataset, plan.split)
    for batch in kept:
        expected = plan.transform.load(index, batch.rows, plan.sampler.epochs(batch.index))
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_operations_of_torch_use_one_thread_in_each_decoding_thread_and_all_in_the_others(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append(torch.get_num_threads())
            return function(*arguments)

        return call

    monkeypatch.setattr(transform_module, "augment_pixels", noting(transform_module.augment_pixels))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(batches_of(plan_of(tree_dataset, spec=replace(CROPS, auto="trivial"))))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("share", "remote", "expected"), [("1", False, 8), ("3", False, 2), ("99", False, 1), ("2", True, 16)]
)
def test_threads_are_the_share_of_the_nodes_cpus(
    monkeypatch: pytest.MonkeyPatch, share: str, remote: bool, expected: int
) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", share)
    assert decode_threads(remote) == expected


def test_what_a_thread_raises_arrives_as_itself_and_ends_the_threads(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = DatasetError("row 7: the bytes have changed")

    def read(*arguments: Any) -> Any:
        time.sleep(0.05)
        raise error

    monkeypatch.setattr(transform_module, "read_parts", read)
    with pytest.raises(DatasetError) as caught:
        next(copied_ahead(thread_source(plan_of(tree_dataset)), torch.device("cpu")))
    assert caught.value is error
    deadline = time.monotonic() + 5
    while decoding() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not decoding()


def test_a_wait_for_a_slow_read_ends_when_the_consumer_closes(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(*arguments: Any) -> Any:
        reading.set()
        go_on.wait(5)
        raise DatasetError("nobody hears it")

    monkeypatch.setattr(transform_module, "read_parts", read)
    batches = thread_source(plan_of(tree_dataset))(reading.is_set)
    threading.Timer(0.4, go_on.set).start()
    with pytest.raises(ConsumerClosedError):
        next(batches)
    assert not decoding()


def test_an_empty_sampler_gives_nothing(tree_dataset: str) -> None:
    plan = plan_of(tree_dataset)
    assert list(batches_of(replace(plan, sampler=replace(plan.sampler, num_steps=0)))) == []
