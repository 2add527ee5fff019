import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.keyed_random import Stream, bits, permutation
from pipeline.core.partition import even_split
from pipeline.loader.sample_order import Order, num_steps

orders = st.builds(
    Order,
    row_group_rows=st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    global_batch_size=st.integers(1, 70),
    window_row_groups=st.one_of(st.none(), st.integers(1, 5)),
    run_rows=st.integers(1, 9),
)


@given(orders, st.integers(0, 5))
def test_every_row_is_seen_once_per_epoch(order: Order, epoch: int) -> None:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    rows = np.concatenate([order.rows(step) for step in steps])
    assert np.array_equal(np.sort(rows), np.arange(order.num_rows))


@given(orders, st.integers(1, 7), st.integers(0, 100))
def test_a_global_batch_is_the_same_for_every_world_size(order: Order, world_size: int, step: int) -> None:
    parts = [order.rows(step, world_size, rank) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(parts), order.rows(step))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


world_sizes = st.sampled_from([1, 2, 3, 4, 7])


@given(orders, st.booleans(), st.lists(world_sizes, min_size=1, max_size=8))
def test_world_sizes_may_change_at_any_step(order: Order, pairs: bool, sizes: list[int]) -> None:
    """Two epochs, each step shared out among another number of workers: one sequence, every row twice."""
    order = replace(order, pairs=pairs)
    seen = []
    for step, world_size in zip(range(2 * order.steps_per_epoch), cycle(sizes), strict=False):
        parts = [order.rows(step, world_size, rank) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), order.rows(step))
        seen += np.concatenate(parts).tolist()
    assert sorted(seen) == sorted([*range(order.num_rows)] * 2)


@given(orders, world_sizes, st.integers(0, 100))
def test_pairs_stay_together(order: Order, world_size: int, step: int) -> None:
    order = replace(order, pairs=True)
    sizes = [len(order.rows(step, world_size, rank)) for rank in range(world_size)]
    assert all(size % 2 == 0 for size in sizes[:-1])
    assert max(sizes) - min(sizes) <= 3


@given(orders, st.integers(0, 100))
def test_batches_differ_by_one_row_and_none_is_too_large(order: Order, step: int) -> None:
    size = len(order.rows(step))
    assert size == order.batch_size(step)
    assert order.num_rows // order.steps_per_epoch <= size <= order.global_batch_size


@given(orders)
def test_epochs_and_seeds_differ_and_repeat_themselves(order: Order) -> None:
    again = replace(order)
    assert np.array_equal(order.epoch_rows(3), again.epoch_rows(3))
    if order.num_rows > 30:
        assert not np.array_equal(order.epoch_rows(0), order.epoch_rows(1))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple),
    st.integers(1, 4),
    st.integers(1, 12),
    st.booleans(),
    st.data(),
)
def test_repeated_images_share_a_batch_and_a_round_of_epochs_holds_each_once_an_epoch(
    groups: tuple[int, ...], repeats: int, images: int, pairs: bool, data: st.DataObject
) -> None:
    """Also where the number of workers changes at every step."""
    order = Order(groups, 7, repeats * images, 2, pairs, repeats)
    assert order.steps_per_epoch == num_steps(sum(groups), repeats * images)
    for round_ in range(2):
        seen: list[tuple[int, int]] = []
        for step in range(repeats * order.steps_per_epoch):
            step += round_ * repeats * order.steps_per_epoch
            size = data.draw(world_sizes)
            rows = np.concatenate([order.rows(step, size, rank) for rank in range(size)])
            parts = [np.broadcast_to(order.epochs(step, size, r), order.rows(step, size, r).shape) for r in range(size)]
            epochs = np.concatenate(parts)
            assert len(rows) == order.batch_size(step) <= repeats * images
            for row in set(rows.tolist()):
                assert sorted(epochs[rows == row]) == list(range(round_ * repeats, (round_ + 1) * repeats))
            seen += zip(rows.tolist(), epochs.tolist(), strict=True)
        expected = range(round_ * repeats, (round_ + 1) * repeats)
        assert sorted(seen) == sorted((row, epoch) for row in range(order.num_rows) for epoch in expected)


def test_a_window_mixes_only_its_own_row_groups() -> None:
    order = Order((10,) * 8, seed=1, global_batch_size=7, window_row_groups=2)
    for start in range(0, 80, 20):
        window = order.epoch_rows(0)[start : start + 20]
        assert len(set(window // 10)) == 2
        assert not np.array_equal(window, np.sort(window))


@given(orders, st.integers(0, 3))
def test_the_order_is_what_its_sentences_say(order: Order, epoch: int) -> None:
    """Word by word, slowly."""

    def drawn(stream: Stream, numbers: list[int]) -> list[int]:
        places = permutation(order.seed, epoch, stream, np.array(numbers, dtype=np.uint64))
        return [numbers[place] for place in places]

    groups, first = [], 0
    for size in order.row_group_rows:
        groups.append(list(range(first, first + size)))
        first += size
    sorted_groups, expected = drawn(Stream.ROW_GROUP, list(range(len(groups)))), []
    window = order.window_row_groups or len(groups)
    for start in range(0, len(groups), window):
        members = [groups[number] for number in sorted(sorted_groups[start : start + window])]
        if order.run_rows == 1:
            expected += drawn(Stream.ROW, [row for group in members for row in group])
            continue
        length = order.run_rows
        runs = {group[at]: group[at : at + length] for group in members for at in range(0, len(group), length)}
        firsts = drawn(Stream.RUN, list(runs))
        for at in range(0, len(firsts), 4):
            expected += drawn(Stream.ROW, [row for number in sorted(firsts[at : at + 4]) for row in runs[number]])
    assert order.epoch_rows(epoch).tolist() == expected


def test_runs_stay_together_and_their_rows_do_not_stay_neighbours() -> None:
    order = Order((64,) * 32, seed=2, global_batch_size=256, run_rows=8)
    batch = order.rows(3)
    assert sorted(np.unique(batch // 8, return_counts=True)[1].tolist()) == [8] * 32
    follows = np.mean(np.diff(batch) == 1)
    assert follows < 0.05
    assert not np.array_equal(np.unique(batch // 8), np.unique(order.rows(3 + order.steps_per_epoch) // 8))


PINNED_FULL = [0, 1, 7, 2, 6, 10, 4, 8, 5, 3, 9]
PINNED_RUNS = [
    14, 41, 0, 1, 16, 15, 42, 46, 12, 13, 33, 45, 21, 34, 22, 3, 2, 32, 7, 9, 8, 31, 6, 24, 17, 18, 23, 39, 40, 11,
    10, 30, 29, 37, 38, 19, 27, 28, 20, 44, 25, 5, 43, 26, 4, 35, 36,
]  # fmt: skip
PINNED_WINDOWS = [5, 7, 4, 6, 9, 8, 10, 3, 2, 0, 1]


def test_the_order_is_pinned() -> None:
    """Resuming an old run and reading an old report depend on it; a change needs a new version of the order."""
    assert Order((4, 4, 3), seed=0, global_batch_size=4).epoch_rows(0).tolist() == PINNED_FULL
    assert Order((4, 4, 3), 0, 4, window_row_groups=1).epoch_rows(1).tolist() == PINNED_WINDOWS
    assert Order((4, 13, 30), 0, 4, run_rows=2).epoch_rows(1).tolist() == PINNED_RUNS


@pytest.mark.parametrize(
    ("items", "parts", "sizes"),
    [
        (10, 3, [3, 3, 4]),
        (2, 3, [0, 1, 1]),  # fewer items than parts
        (0, 2, [0, 0]),
        (6, 1, [6]),
    ],
)
def test_cut(items: int, parts: int, sizes: list[int]) -> None:
    cuts = [even_split(items, parts, part) for part in range(parts)]
    assert [stop - start for start, stop in cuts] == sizes
    assert cuts[0][0] == 0
    assert cuts[-1][1] == items


@pytest.mark.parametrize(("rows", "batch", "steps"), [(10, 5, 2), (11, 5, 3), (4, 5, 1)])
def test_num_steps_rounds_up(rows: int, batch: int, steps: int) -> None:
    assert num_steps(rows, batch) == steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 0, 4), "no row"),
        (((3,), 0, 0), "global_batch_size=0"),
        (((3,), 0, 1, 0), "window_row_groups=0"),
        (((3,), 0, 1, None, False, 1, 0), "run_rows=0"),
    ],
)
def test_impossible_orders_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(*arguments)


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank=2 must lie in \[0, 2\)"):
        Order((3,), 0, 1).rows(0, world_size=2, rank=2)


def test_a_later_step_does_not_look_at_the_row_groups_again() -> None:
    """There may be tens of thousands, and hashing them took ten times as long as a step's rows may take."""

    class Watched(tuple[int, ...]):
        looks = 0

        def __hash__(self) -> int:
            Watched.looks += 1
            return super().__hash__()

        def __iter__(self) -> Iterator[int]:
            Watched.looks += 1
            return super().__iter__()

    order = Order(Watched((64,) * 100), 0, 32, 8)
    order.rows(0)
    looks = Watched.looks
    for step in range(1, order.steps_per_epoch):
        order.rows(step, 2, 1)
        order.epochs(step, 2, 1)
    assert Watched.looks == looks > 0


def test_an_order_arrives_in_another_process_with_what_it_has_computed() -> None:
    order = pickle.loads(pickle.dumps(Order((64,) * 100, 0, 32, 8)))  # noqa: S301
    assert {"digest", "num_rows", "steps_per_epoch"} <= vars(order).keys()
    assert order == Order((64,) * 100, 0, 32, 8)
    assert order != Order((64,) * 100, 1, 32, 8)


@pytest.mark.parametrize("window", [None, 32])
def test_the_first_batch_of_many_rows_takes_little_memory(window: int | None) -> None:
    """A window at a time is shuffled; one over all rows takes 4 bytes a row, not the 8 of its row numbers."""
    order = Order((64,) * 30_000, 0, 1024, window)
    tracemalloc.start()
    order.rows(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (12 << 20) + (4 * order.num_rows if window is None else 0)


def test_an_order_of_many_rows_is_what_its_sentences_say() -> None:
    """More rows than are sorted at once."""
    order = Order((100,) * 2000, 4, 1000)
    draws = bits(order.seed, 2, Stream.ROW, np.arange(order.num_rows, dtype=np.uint64))[:, 0]
    assert np.array_equal(order.epoch_rows(2), np.argsort(draws, kind="stable"))
