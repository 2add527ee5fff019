import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from pipeline.core.keyed_random import Stream, bits, key_hash, mix, permutation, sorted_by_draw, uniform

MASK = 2**64 - 1


def splitmix_next(state: int) -> int:
    """SplitMix64 in plain integers, from the reference C code (Vigna, https://prng.di.unimi.it/splitmix64.c)."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_mix_is_the_published_splitmix64() -> None:
    # The reference generator's first outputs from state 1234567, listed by several independent implementations.
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(int(mix(np.array([(state + 0x9E3779B97F4A7C15) & MASK], dtype=np.uint64))[0]))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("seed", "epoch", "key"), [(0, 0, 0), (7, 3, 12345), (2**63, 90, 2**64 - 1)])
def test_bits_follow_the_documented_definition(seed: int, epoch: int, key: int) -> None:
    gamma, state = 0x9E3779B97F4A7C15, 0
    for word in (seed, epoch, int(Stream.FLIP)):
        state = splitmix_next((((state + gamma) & MASK) ^ word) - gamma & MASK)
    base = splitmix_next((splitmix_next(key) ^ state) - gamma & MASK)
    expected = [splitmix_next(base + (counter - 1) * gamma & MASK) for counter in (1, 2, 3)]
    assert bits(seed, epoch, Stream.FLIP, np.array([key], dtype=np.uint64), 3)[0].tolist() == expected


def test_draws_are_pinned() -> None:
    """Every run's order and augmentation depend on these numbers; a change breaks every resumption."""
    keys = key_hash(["train/cat/0001.jpg", "b"])
    assert keys.tolist() == [17896812339574406762, 8453121595177857668]
    assert bits(0, 0, Stream.ROW, keys)[:, 0].tolist() == [13301269066314841073, 1179013771077637403]


def test_a_draw_does_not_depend_on_its_company() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    together = uniform(3, 1, Stream.CROP, keys, 2)
    alone = np.concatenate([uniform(3, 1, Stream.CROP, keys[[k]], 2) for k in range(0, 1000, 97)])
    assert np.array_equal(together[::97], alone)
    assert np.array_equal(uniform(3, 1, Stream.CROP, keys, 1)[:, 0], together[:, 0])


@pytest.mark.parametrize("change", [(1, 0, Stream.ROW), (0, 1, Stream.ROW), (0, 0, Stream.FLIP)])
def test_seed_epoch_and_stream_give_unrelated_draws(change: tuple[int, int, Stream]) -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    first, second = uniform(0, 0, Stream.ROW, keys)[:, 0], uniform(*change, keys)[:, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_uniform_is_uniform() -> None:
    from scipy.stats import kstest

    assert kstest(uniform(0, 0, Stream.ROW, np.arange(20_000, dtype=np.uint64))[:, 0], "uniform").pvalue > 0.01


def test_permutation_holds_every_position_once() -> None:
    assert np.array_equal(np.sort(permutation(0, 0, Stream.ROW, np.arange(999, dtype=np.uint64))), np.arange(999))


@pytest.mark.parametrize("count", [0, 1, 65_536, 65_537, 300_001])
def test_a_permutation_is_the_stable_sort_of_the_draws(count: int) -> None:
    """Whatever the number of keys: many are sorted bucket by bucket. Some keys occur several times."""
    keys = np.random.default_rng(count).integers(0, 2**63, count, dtype=np.uint64)
    keys[::7] = 5
    expected = np.argsort(bits(3, 1, Stream.ROW, keys)[:, 0], kind="stable")
    assert np.array_equal(permutation(3, 1, Stream.ROW, keys), expected)
    numbers = np.argsort(bits(3, 1, Stream.ROW, np.arange(count, dtype=np.uint64))[:, 0], kind="stable")
    assert np.array_equal(sorted_by_draw(3, 1, Stream.ROW, count)[:], numbers)


def test_hashes_of_a_column_are_those_of_its_texts() -> None:
    texts = [f"train/é/{number}" for number in range(70_000)]
    column = pa.chunked_array([texts[:1000], texts[1000:]])
    assert np.array_equal(key_hash(column), key_hash(texts))
    assert np.array_equal(key_hash(column.slice(5, 10)), key_hash(texts[5:15]))


def test_numbers_sorted_by_draw_take_four_bytes_each() -> None:
    count = 1_000_000
    tracemalloc.start()
    order = sorted_by_draw(0, 0, Stream.ROW, count)
    order[: 1 << 14]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(order) == count
    assert peak < 4 * count + (12 << 20)  # a part's numbers: 64 Ki at a time
