"""What a cache keeps is what Belady's rule says, and no rule fetches less."""

from collections.abc import Callable
from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.row_reader import REQUEST_BYTES, RowIndex
from pipeline.loader.row_groups.eviction import Keeper
from pipeline.loader.row_groups.visits import NEVER, NodeReads, Visit
from pipeline.loader.sample_order import Order
from pipeline.loader.sampling.counts import whole_total

Kinds = list[tuple[str, tuple[int, ...]]]


def next_use_in(visits: list[Visit]) -> Callable[[int, int], int]:
    def next_use(group: int, after: int) -> int:
        return min((each.first for each in visits if each.group == group and each.first > after), default=NEVER)

    return next_use


def decided(visits: list[Visit], max_bytes: int | None) -> tuple[Kinds, list[int]]:
    """Returns what the keeper decides, and the bytes that it holds after each decision."""
    keeper, used = Keeper(max_bytes, next_use_in(visits)), []
    kinds: Kinds = []
    for visit in visits:
        decision = keeper.decide(visit)
        kinds.append((decision.kind, tuple(each.group for each in decision.evictions)))
        used.append(keeper.used_bytes)
    return kinds, used


def by_the_rule(visits: list[Visit], max_bytes: int) -> Kinds:
    """Belady's rule, written down as it is said: everything is looked up anew at every visit."""
    kept: dict[int, Visit] = {}
    kinds: Kinds = []
    for number, visit in enumerate(visits):
        kind = "kept" if visit.group in kept else "fetch"
        gone: list[int] = []
        if kind == "fetch":
            left = dict(kept)
            while sum(each.length for each in left.values()) + visit.length > max_bytes:
                uses = {
                    group: next((v.first for v in visits[number:] if v.group == group), NEVER)
                    for group, last in left.items()
                    if last.last < visit.first and visit.is_worth
                }
                farthest = min(uses, key=lambda group: (-uses[group], group), default=None)
                if farthest is None or uses[farthest] <= visit.first:
                    kind, gone = "rows", []
                    break
                gone.append(farthest)
                del left[farthest]
            else:
                kept = left
        if kind != "rows":
            kept[visit.group] = visit
        kinds.append((kind, tuple(gone)))
    return kinds


@st.composite
def plans(draw: st.DrawFn) -> list[Visit]:
    """Some epochs, in each of which every row group is visited once at most; visits overlap."""
    num_groups, steps = draw(st.integers(1, 7)), draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 9), min_size=num_groups, max_size=num_groups))
    visits = []
    for epoch in range(draw(st.integers(1, 4))):
        for group in draw(st.permutations(range(num_groups))):
            if draw(st.booleans()) or epoch == 0:
                first = draw(st.integers(0, steps - 1))
                last = draw(st.integers(first, steps - 1))
                worth = draw(st.sampled_from([True, True, False]))
                visits.append(Visit(group, epoch * steps + first, epoch * steps + last, lengths[group], worth))
    return sorted(visits, key=lambda visit: visit.first)


@given(plans(), st.integers(0, 40))
def test_decisions_are_those_of_the_rule_and_the_size_is_kept(visits: list[Visit], max_bytes: int) -> None:
    kinds, used = decided(visits, max_bytes)
    assert kinds == by_the_rule(visits, max_bytes)
    assert max(used, default=0) <= max_bytes


@given(st.lists(st.integers(0, 5), max_size=14), st.integers(1, 4))
def test_no_choice_of_evictions_fetches_less(groups: list[int], places: int) -> None:
    """Against all choices: row groups of one size, one visit after the other."""
    visits = [Visit(group, step, step, 1, True) for step, group in enumerate(groups)]

    @cache
    def least(step: int, kept: frozenset[int]) -> int:
        if step == len(groups):
            return 0
        if groups[step] in kept:
            return least(step + 1, kept)
        with_it = kept | {groups[step]}
        if len(with_it) <= places:
            return 1 + least(step + 1, with_it)
        return 1 + min(least(step + 1, with_it - {gone}) for gone in kept)

    kinds, _ = decided(visits, places)
    assert [kind for kind, _ in kinds].count("fetch") == least(0, frozenset())


def test_what_is_there_already_counts_and_a_larger_cache_shrinks() -> None:
    visits = [Visit(group, step, step, 10, True) for step, group in enumerate([0, 1, 2, 3])]
    keeper = Keeper(20, next_use_in(visits), {3: 10, 0: 10, 2: 10})
    assert [each.group for each in keeper.shrink()] == [3]
    assert keeper.decide(visits[0]).kind == "kept"
    assert keeper.decide(visits[1]).evictions[0].group == 0


# --- visits ------------------------------------------------------------------------------------------------------


def index_of(row_group_rows: tuple[int, ...], image_bytes: int = 100) -> RowIndex:
    rows = sum(row_group_rows)
    length = (image_bytes + np.arange(rows) % 7).astype(np.int32)
    none, numbers = np.zeros(rows, np.int32), np.cumsum(length) - length
    facts = (none, numbers, length, none.astype(np.uint32), none, none, none, none.astype(np.uint64))
    return RowIndex(("s3://bucket/shard",), *facts, np.cumsum(row_group_rows))


@given(
    st.booleans(),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.data(),
)
def test_visits_are_the_steps_in_which_the_ranks_of_a_node_read(
    samples: bool, sizes: list[int], batch: int, window: int | None, world: int, repeats: int, data: st.DataObject
) -> None:
    weights = np.arange(1, 1 + sum(sizes)) % 3 * 0.5  # rows that don't come, that come sometimes, and always
    counts = whole_total(weights, np.zeros(len(weights), dtype=np.int32)) if samples else None
    order = Order(tuple(sizes), 1, batch * repeats, window, repeats=repeats, expected=counts)
    ranks = tuple(sorted(data.draw(st.sets(st.integers(0, world - 1), min_size=1))))
    start = data.draw(st.integers(0, 2 * order.steps_per_epoch))
    stop = start + data.draw(st.integers(0, 3 * order.steps_per_epoch))
    index = index_of(tuple(sizes), 300_000)
    reads = NodeReads(order, index, world, ranks, start, stop)
    found: dict[tuple[int, int], list[int]] = {}
    read: dict[tuple[int, int], int] = {}
    for step in range(start, stop):
        for rank in ranks:
            for row in order.rows(step, world, rank).tolist():
                key = (step // order.steps_per_epoch, int(np.searchsorted(index.row_group_ends, row, side="right")))
                found.setdefault(key, []).append(step)
                read[key] = read.get(key, 0) + REQUEST_BYTES + int(index.length[row])
    visits = list(reads.visits())
    assert [visit.first for visit in visits] == sorted(visit.first for visit in visits)
    assert {(v.first // order.steps_per_epoch, v.group): (v.first, v.last) for v in visits} == {
        key: (steps[0], steps[-1]) for key, steps in found.items()
    }
    for group in range(len(sizes)):
        assert reads.next_use(group, start - 1) == min((v.first for v in visits if v.group == group), default=NEVER)
    for visit in visits:
        assert visit.length == index.whole_group(visit.group).length
        assert visit.is_worth == (
            read[visit.first // order.steps_per_epoch, visit.group] >= visit.length + REQUEST_BYTES
        )
        later = [v.first for v in visits if v.group == visit.group and v.first > visit.last]
        assert reads.next_use(visit.group, visit.last) == min(later, default=NEVER)
