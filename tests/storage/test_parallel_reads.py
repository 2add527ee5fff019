import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.storage.parallel_reads import read_ahead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.mark.parametrize("max_pending", [1, 3, 100, None])
def test_results_come_in_the_order_of_the_items(pool: ThreadPoolExecutor, max_pending: int | None) -> None:
    def read(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    found = list(read_ahead(pool, read, range(20), in_order=True, max_pending=max_pending))
    assert found == [(item, item * item) for item in range(20)]


def test_a_slow_read_does_not_hold_up_the_others_unless_order_matters(pool: ThreadPoolExecutor) -> None:
    slow = threading.Event()

    def read(item: int) -> int:
        if item == 0:
            slow.wait(10)
        return item

    reads = read_ahead(pool, read, range(10), in_order=False, max_pending=4)
    assert sorted(next(reads)[0] for _ in range(9)) == list(range(1, 10))
    slow.set()
    assert list(reads) == [(0, 0)]


@pytest.mark.parametrize("in_order", [False, True])
def test_no_more_reads_are_pending_than_allowed(pool: ThreadPoolExecutor, in_order: bool) -> None:
    begun: list[int] = []

    def read(item: int) -> None:
        begun.append(item)

    for taken, _ in enumerate(read_ahead(pool, read, range(50), in_order=in_order, max_pending=6), 1):
        time.sleep(0.001)
        assert len(begun) - taken <= 6


def test_an_error_is_raised_and_a_caller_that_stops_cancels_the_rest() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise OSError("gone")
        return item

    with ThreadPoolExecutor(1) as pool:
        reads = read_ahead(pool, read, range(1000), in_order=True, max_pending=5)
        with pytest.raises(OSError, match="gone"):
            list(reads)
    assert len(begun) <= 9

    hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        all_at_once = read_ahead(pool, lambda item: item or hold.wait(0.01), range(1000), in_order=True)
        next(all_at_once)
        all_at_once.close()  # type: ignore[attr-defined]
