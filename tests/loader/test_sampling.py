"""Sampling: counts, order and batches as the definitions say, for any weights, filters, world sizes and resumptions."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.sampling import Sampling
from pipeline.core.keyed_random import COPY_EPOCHS, Stream, bits, permutation
from pipeline.loader.sample_order import Order
from pipeline.loader.sampling.counts import ExpectedCounts, whole_total
from pipeline.loader.sampling.mixture import ONE


@st.composite
def sampled_orders(draw: st.DrawFn) -> tuple[Order, np.ndarray]:
    """An order with expected counts, and what the counts were before they were made to add up to a whole number."""
    groups = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    num_rows = sum(groups)
    drawn = np.random.default_rng(draw(st.integers(0, 2**32)))
    palette = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 1 / 3, 0.001, 4.7]), min_size=1, max_size=4))
    wanted = drawn.choice(palette, num_rows) * draw(st.sampled_from([1.0, 0.1, 1 / 3, 2.5]))
    wanted *= drawn.uniform(0.5, 1.5, num_rows) if draw(st.booleans()) else 1.0
    wanted[0] = wanted[0] or 1.0
    labels = drawn.integers(0, 5, num_rows).astype(np.int32)
    order = Order(
        tuple(groups),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(3, 40)),
        draw(st.one_of(st.none(), st.integers(1, 4))),
        draw(st.booleans()),
        1,
        draw(st.integers(1, 5)),
        whole_total(wanted, labels),
    )
    return order, wanted


def epoch_in_parts(order: Order, epoch: int, sizes: np.random.Generator) -> list[int]:
    """The rows of an epoch, each step shared out among another number of workers, and compared with one worker's."""
    seen: list[int] = []
    for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
        size = int(sizes.choice([1, 2, 3, 7]))
        parts = [order.rows(step, size, rank) for rank in range(size)]
        epochs = [np.broadcast_to(order.epochs(step, size, rank), len(parts[rank])) for rank in range(size)]
        assert np.array_equal(np.concatenate(parts), order.rows(step))
        assert np.array_equal(np.concatenate(epochs), np.broadcast_to(order.epochs(step), len(order.rows(step))))
        assert len(order.rows(step)) == order.batch_size(step) <= order.global_batch_size
        seen += np.concatenate(parts).tolist()
    return seen


def check_case(case: tuple[Order, np.ndarray], epoch: int, seed: int) -> None:
    (order, wanted), drawn = case, np.random.default_rng(seed)
    expected = order.expected
    assert expected is not None
    seen = epoch_in_parts(order, epoch, drawn)
    assert len(seen) == order.num_rows == max(1, round(wanted.sum())) or abs(wanted.sum() % 1 - 0.5) < 1e-6
    counts = np.bincount(seen, minlength=len(wanted))
    assert np.array_equal(counts, expected.counts(order.seed, epoch))
    within_one(counts, wanted)
    for label in range(5):
        here = expected.groups == label
        # The classes' expectations are those of the counts that add up to a whole number.
        within_one(counts[here].sum(), expected.units[here].sum() / ONE)
    resumed = int(drawn.integers(0, 5 * order.steps_per_epoch))
    assert np.array_equal(replace(order).rows(resumed, 2, 1), order.rows(resumed, 2, 1))


def within_one(counts: np.ndarray, expected: np.ndarray) -> None:
    """Each count is its expectation, rounded up or down; a little more than whole may be the fault of float64."""
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


@settings(max_examples=100, deadline=None)
@given(sampled_orders(), st.integers(0, 6), st.integers(0, 99))
def test_counts_are_within_one_and_batches_are_the_same_for_every_world_size(
    case: tuple[Order, np.ndarray], epoch: int, seed: int
) -> None:
    check_case(case, epoch, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(sampled_orders(), st.integers(0, 6), st.integers(0, 99))
def test_a_thousand_cases_are_as_the_definition_says(case: tuple[Order, np.ndarray], epoch: int, seed: int) -> None:
    check_case(case, epoch, seed)
    order = case[0]
    assert order.epoch_rows(epoch).tolist() == slowly(order, epoch)


@settings(max_examples=20, deadline=None)
@given(sampled_orders(), st.integers(0, 6))
def test_the_sampled_order_is_what_its_sentences_say(case: tuple[Order, np.ndarray], epoch: int) -> None:
    assert case[0].epoch_rows(epoch).tolist() == slowly(case[0], epoch)


def slowly(order: Order, epoch: int) -> list[int]:
    """The order of an epoch, word by word, with fractions."""
    expected = order.expected
    assert expected is not None

    def drawn(stream: Stream, numbers: list[int], epoch: int = epoch) -> list[int]:
        places = permutation(order.seed, epoch, stream, np.array(numbers, dtype=np.uint64))
        return [numbers[place] for place in places]

    line = [row for row in drawn(Stream.SAMPLE, list(range(len(expected.units))), 0) if expected.units[row]]
    line.sort(key=lambda row: expected.groups[row])
    first = int(bits(order.seed, 0, Stream.SAMPLE_OFFSET, np.zeros(1, dtype=np.uint64))[0, 0]) >> 32
    offset = Fraction(first + epoch * expected.step, ONE) % 1
    counts, end = dict.fromkeys(range(len(expected.units)), 0), Fraction(0)
    for row in line:
        start, end = end, end + Fraction(int(expected.units[row]), ONE)
        counts[row] = (end + offset) // 1 - (start + offset) // 1

    groups, begin = [], 0
    for size in order.row_group_rows:
        groups.append(list(range(begin, begin + size)))
        begin += size
    sorted_groups, result = drawn(Stream.ROW_GROUP, list(range(len(groups)))), []
    window, length = order.window_row_groups or len(groups), order.run_rows
    for start_of_window in range(0, len(groups), window):
        members = [groups[number] for number in sorted(sorted_groups[start_of_window : start_of_window + window])]
        runs = {group[at]: group[at : at + length] for group in members for at in range(0, len(group), length)}
        firsts = drawn(Stream.RUN, list(runs))
        together = [firsts[at : at + 4] for at in range(0, len(firsts), 4)] if length > 1 else [list(runs)]
        for some in together:
            rows = [row for number in sorted(some) for row in runs[number]]
            numbers = [row + (copy << 40) for row in rows for copy in range(counts[row])]
            result += [number % (1 << 40) for number in drawn(Stream.ROW, numbers)]
    return result


def counts_of(order: Order, epochs: int) -> np.ndarray:
    assert order.expected is not None
    return np.sum([order.expected.counts(order.seed, epoch) for epoch in range(epochs)], axis=0)


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_epochs_of_a_share_go_through_all_rows(parts: int) -> None:
    labels = np.arange(300, dtype=np.int32) % 7
    order = Order((100, 200), 5, 30, expected=whole_total(np.full(300, 1 / parts), labels))
    assert (counts_of(order, parts) == 1).all()
    assert order.num_rows == 300 // parts


def test_over_many_epochs_counts_stay_near_their_expectations() -> None:
    expected = np.random.default_rng(0).uniform(0, 2.5, 500)
    order = Order((500,), 1, 50, expected=whole_total(expected, np.zeros(500, dtype=np.int32)))
    assert order.expected is not None
    assert np.abs(counts_of(order, 200) - 200 * order.expected.units / ONE).max() < 3


def test_a_filter_leaves_rows_out_of_the_order_and_changes_nothing_else() -> None:
    whole = Order((10, 20, 5, 30), 3, 8, 2)
    passes = np.arange(65) % 3 != 0
    filtered = replace(whole, expected=whole_total(passes.astype(float), np.zeros(65, dtype=np.int32)))
    rows = whole.epoch_rows(4)
    assert np.array_equal(filtered.epoch_rows(4), rows[passes[rows]])
    assert filtered.epochs(4 * filtered.steps_per_epoch) == 4  # augmented as without the filter


def test_copies_of_a_row_are_augmented_differently() -> None:
    order = Order((6,), 0, 9, expected=whole_total(np.array([3.0, 1, 1, 1, 2, 1]), np.zeros(6, dtype=np.int32)))
    rows, epochs = order.rows(2), order.epochs(2)
    assert isinstance(epochs, np.ndarray)
    assert sorted(epochs[rows == 0].tolist()) == [2, 2 + COPY_EPOCHS, 2 + 2 * COPY_EPOCHS]
    assert len({*zip(rows.tolist(), epochs.tolist(), strict=True)}) == 9


def test_repeats_and_copies_go_together() -> None:
    expected = whole_total(np.array([2.0, 1, 1, 0]), np.zeros(4, dtype=np.int32))
    order = Order((4,), 0, 8, repeats=2, expected=expected)
    rows = np.concatenate([order.rows(step) for step in range(2 * order.steps_per_epoch)])
    epochs = np.concatenate([order.epochs(step) for step in range(2 * order.steps_per_epoch)])
    assert np.bincount(rows, minlength=4).tolist() == [4, 2, 2, 0]
    assert len({*zip(rows.tolist(), epochs.tolist(), strict=True)}) == 8


def test_a_window_of_a_sampled_epoch_holds_its_own_row_groups() -> None:
    """So row groups are read once an epoch, as without sampling."""
    order = Order((10,) * 8, 1, 7, 2, expected=whole_total(np.full(80, 0.5), np.zeros(80, dtype=np.int32)))
    groups = order.epoch_rows(0) // 10
    seen: list[set[int]] = []
    for group in groups.tolist():
        if not seen or group not in seen[-1]:
            if seen and len(seen[-1]) < 2:
                seen[-1].add(group)
            else:
                assert all(group not in each for each in seen)
                seen.append({group})


def test_the_sampled_order_is_pinned() -> None:
    expected = whole_total(np.array([0.5, 2.25, 1, 0, 0.75, 1, 0.5]), np.array([0, 0, 0, 1, 1, 1, 1], dtype=np.int32))
    assert Order((4, 3), 0, 4, expected=expected).epoch_rows(1).tolist() == PINNED
    assert Order((4, 3), 7, 4, 1, expected=expected).epoch_rows(2).tolist() == PINNED_WINDOWS


PINNED = [5, 2, 1, 4, 1, 6]
PINNED_WINDOWS = [1, 1, 1, 2, 4, 5]


def test_expected_counts_that_are_not_whole_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        ExpectedCounts(np.array([ONE // 2]), np.zeros(1, dtype=np.int32))
    with pytest.raises(ValueError, match="2 rows; the row groups hold 3"):
        Order((3,), 0, 1, expected=whole_total(np.ones(2), np.zeros(2, dtype=np.int32)))
    with pytest.raises(ValueError, match="too long"):
        whole_total(np.array([1e12]), np.zeros(1, dtype=np.int32))


def test_no_sampling_is_inactive() -> None:
    assert not Sampling().is_active
    assert Sampling(share=0.5).is_active
