"""Batches by threads and helpers together are those of threads alone, whatever helpers do."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.augment import Augment
from pipeline.core.errors import DatasetError, ExactnessError
from pipeline.dataset import manifest
from pipeline.loader import transform as transform_module
from pipeline.loader.batch import Batch
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.streaming import helped, threads
from pipeline.loader.streaming.helped import Columns, helped_source
from pipeline.loader.streaming.plan import ConsumerClosedError, StreamPlan
from pipeline.loader.streaming.threads import thread_source
from pipeline.loader.transform import Transform

CROPS = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
Answers = list[tuple[float, int, Columns | None]]
"""(seconds from now, number, columns)"""
Answer = Callable[[int, Columns], Answers]


def plan_of(uri: str, world_size: int = 1, rank: int = 0, epochs: int = 2) -> StreamPlan:
    split = manifest.load(uri).split("train")
    order = Order(split.row_group_rows, 3, 5, 2)
    sampler = TrainSampler(order, epochs * order.steps_per_epoch, 2, world_size, rank)
    return StreamPlan(uri, split, sampler, Transform(24, 24, CROPS, seed=3, decoder=best_decoder()), "quarantine")


def columns_of(plan: StreamPlan, number: int) -> Columns:
    """Returns what a task makes of a batch."""
    index, rows = plan.index(), plan.sampler.rows(number)
    images = plan.transform.load(index, rows, plan.sampler.epochs(number))
    labels = index.label[rows].astype(np.int64)
    return {"row": rows, "label": labels, "image": images, "corrupt": rows < 0, "timing": np.zeros(5)}


class Fake:
    """Helpers that answer as a function says, and count what they were asked for."""

    def __init__(self, plan: StreamPlan, answer: Answer, most: int, changed: Callable[[], None]) -> None:
        self._plan, self._answer, self._most, self._changed = plan, answer, most, changed
        self._due: Answers = []
        self.asked: list[int] = []
        self.closed = False
        started.append(self)

    def most(self) -> int:
        return self._most

    def call(self) -> None:
        pass

    def ask(self, number: int) -> None:
        self.asked.append(number)
        now = time.monotonic()
        for seconds, which, columns in self._answer(number, columns_of(self._plan, number)):
            self._due.append((now + seconds, which, columns))
            timer = threading.Timer(seconds, self._changed)
            timer.daemon = True
            timer.start()

    def arrived(self) -> list[tuple[int, Columns | None]]:
        now = time.monotonic()
        due, self._due = [each for each in self._due if each[0] <= now], [each for each in self._due if each[0] > now]
        return [(number, columns) for _, number, columns in due]

    def close(self) -> None:
        self.closed = True


started: list[Fake] = []


def at_once(number: int, columns: Columns) -> Answers:
    return [(0, number, columns)]


ANSWERS: dict[str, Answer] = {
    "at once": at_once,
    "slow": lambda number, columns: [(0.2, number, columns)],
    "dead": lambda number, columns: [],
    "out of order": lambda number, columns: [(0.03 * (number % 3), number, columns)],
    "raising": lambda number, columns: [(0, number, None)],
    "twice": lambda number, columns: [(0, number, columns), (0.01, number, columns)],
    "lost and found": lambda number, columns: [(0, number, None), (0.02, number, columns)],
    "sometimes dead": lambda number, columns: [(0, number, columns)] * (number % 4 > 0),
}


def digests(batches: Generator[Batch]) -> list[tuple[Any, ...]]:
    with closing(batches):
        return [
            (
                batch.index,
                *(each.tobytes() for each in (batch.rows, batch.keys, batch.positions, batch.corrupt)),
                np.asarray(batch.epochs).tobytes(),
                batch.labels.numpy().tobytes(),
                batch.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes(),
            )
            for batch in batches
        ]


def helped_batches(plan: StreamPlan, answer: Answer, most: int = 4, ahead_bytes: int = 1 << 20) -> Generator[Batch]:
    return helped_source(plan, False, partial(Fake, plan, answer, most), ahead_bytes)(lambda: False)


def by_threads(plan: StreamPlan) -> list[tuple[Any, ...]]:
    return digests(thread_source(plan)(lambda: False))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "decode_threads", lambda remote: 1)
    started.clear()


def slow_threads(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
    """Has a batch take a thread some time, so that there is something to help with."""
    original: Any = vars(transform_module)["read_parts"]

    def read(*arguments: Any) -> Iterator[Any]:
        if threading.current_thread().name.startswith("decode"):
            time.sleep(seconds)
        return original(*arguments)

    monkeypatch.setattr(transform_module, "read_parts", read)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_batches_are_those_of_threads_alone(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch, world_size: int, name: str
) -> None:
    for rank in range(world_size):
        plan = plan_of(tree_dataset, world_size, rank)
        alone = by_threads(plan)
        with monkeypatch.context() as patch:
            slow_threads(patch)
            assert digests(helped_batches(plan, ANSWERS[name])) == alone
        # What was lost frees its place at once: four may be asked for at a time.
        assert len(started[-1].asked) > (4 if name in ("at once", "raising") else 0)
        assert started[-1].closed


@given(
    delays=st.lists(st.sampled_from([0.0, 0.0, 0.005, 0.05, None, -1.0]), min_size=1, max_size=8),
    most=st.integers(0, 9),
    ahead_bytes=st.sampled_from([1, 20_000, 1 << 20]),
    world=st.sampled_from([(1, 0), (2, 1), (7, 3)]),
)
@settings(max_examples=25)
def test_any_mixture_of_answers_gives_the_same_batches(
    tree_dataset: str, delays: list[float | None], most: int, ahead_bytes: int, world: tuple[int, int]
) -> None:
    """None: never. -1: said to be lost."""

    def answer(number: int, columns: Columns) -> Answers:
        delay = delays[number % len(delays)]
        return [] if delay is None else [(max(delay, 0), number, None if delay < 0 else columns)]

    plan = plan_of(tree_dataset, *world, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        slow_threads(patch, 0.002)
        assert digests(helped_batches(plan, answer, most, ahead_bytes)) == by_threads(plan)


def test_it_is_said_once_how_batches_are_shared(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helped, "_TELL_AFTER", 10)
    slow_threads(monkeypatch)
    told: list[str] = []
    plan = plan_of(tree_dataset)
    list(helped_source(plan, False, partial(Fake, plan, at_once, 4), 1 << 20, told.append)(lambda: False))
    assert len(told) == 1
    assert told[0].startswith("batches: of 10, threads made ")


def test_other_rows_than_those_asked_for_stop_the_stream(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_threads(monkeypatch)

    def answer(number: int, columns: Columns) -> Answers:
        return [(0, number, columns | {"row": columns["row"][::-1]})]

    with pytest.raises(ExactnessError, match=r"received batch .* expected rows"):
        digests(helped_batches(plan_of(tree_dataset), answer))
    assert started[-1].closed


def test_a_batch_that_cannot_be_used_stops_the_stream_in_its_turn(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_threads(monkeypatch)

    def answer(number: int, columns: Columns) -> Answers:
        return [(0, number, columns | {"corrupt": columns["row"] >= 0} if number > 9 else columns)]

    taken: list[Batch] = []
    with pytest.raises(DatasetError, match=r"batch \d+: none of its"):
        taken.extend(helped_batches(plan_of(tree_dataset), answer))
    assert len(taken) >= 10


def test_what_a_thread_raises_is_raised_as_itself(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = DatasetError("row 7: the bytes have changed")

    def read(*arguments: Any) -> Iterator[Any]:
        raise error

    batches = helped_batches(plan_of(tree_dataset), ANSWERS["dead"])
    next(batches)
    monkeypatch.setattr(transform_module, "read_parts", read)
    monkeypatch.setattr(Fake, "most", lambda fake: 0)
    with pytest.raises(DatasetError) as caught:
        digests(batches)
    assert caught.value is error
    assert started[-1].closed


def test_a_consumer_that_closes_is_not_kept(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_threads(monkeypatch, 0.3)
    plan = plan_of(tree_dataset)
    with pytest.raises(ConsumerClosedError):
        next(helped_source(plan, False, partial(Fake, plan, ANSWERS["dead"], 4), 1 << 20)(lambda: True))
    assert started[-1].closed


def test_an_empty_sampler_gives_nothing(tree_dataset: str) -> None:
    plan = plan_of(tree_dataset)
    assert digests(helped_batches(replace(plan, sampler=replace(plan.sampler, num_steps=2)), at_once)) == []
