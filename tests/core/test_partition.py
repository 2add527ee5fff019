import numpy as np
import pytest

from pipeline.core.partition import LazyParts


@pytest.mark.parametrize("ends", [[], [0], [3], [2, 2, 7], [1, 5, 5, 6, 20]])
def test_a_slice_of_lazy_parts_is_that_of_the_whole(ends: list[int]) -> None:
    whole = np.arange(ends[-1] if ends else 0) * 3
    parts = LazyParts(np.array(ends, dtype=np.int64), lambda number: whole[[0, *ends][number] : ends[number]])
    assert len(parts) == len(whole)
    for start in range(len(whole) + 2):
        for stop in range(len(whole) + 2):
            assert parts[start:stop].tolist() == whole[start:stop].tolist()
    assert parts[:].tolist() == whole.tolist()


def test_parts_are_computed_when_they_are_read_and_the_last_two_are_kept() -> None:
    computed: list[int] = []

    def part(number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        computed.append(number)
        return np.arange(10 * number, 10 * number + 10)

    parts = LazyParts(np.arange(10, 60, 10), part)
    for start in range(0, 50, 5):
        assert parts[start : start + 5].tolist() == [*range(start, start + 5)]
    assert computed == [0, 1, 2, 3, 4]
    assert parts[38:42].tolist() == [*range(38, 42)]
    assert computed == [0, 1, 2, 3, 4]


def test_what_was_read_may_be_changed() -> None:
    parts = LazyParts(np.array([3]), lambda _: np.arange(3))
    parts[:][0] = 9
    assert parts[:].tolist() == [0, 1, 2]
