"""When tasks on other nodes are started and given up; without Ray."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.cluster.resources import SpareNodes
from pipeline.loader.streaming import ray_helpers
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.ray_helpers import RayHelpers

NODES = SpareNodes(("a",), 1, 1)


class Served:
    """Stands for the executions: each has the next result, or what it raises."""

    def __init__(self, results: list[Any]) -> None:
        self.results, self.nodes = results, list[SpareNodes]()

    def __call__(self, helpers: RayHelpers, nodes: SpareNodes) -> tuple[int, str]:
        self.nodes.append(nodes)
        result = self.results[min(len(self.nodes), len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[RayHelpers, Served]]]:
    """Starts helpers whose executions have some results, and whose looks for nodes find some nodes."""
    running: list[RayHelpers] = []

    def started(results: list[Any], found: list[SpareNodes], patience: float = 0) -> tuple[RayHelpers, Served]:
        served, looks = Served(results), iter(found)
        monkeypatch.setattr(ray_helpers, "_PATIENCE_SECONDS", patience)
        monkeypatch.setattr(ray_helpers, "_LOOK_SECONDS", 0.01)
        monkeypatch.setattr(ray_helpers, "spare_nodes", lambda ranks: next(looks, found[-1]))
        monkeypatch.setattr(RayHelpers, "_serve", lambda helpers, nodes: served(helpers, nodes))
        plan: StreamPlan = None  # type: ignore[assignment]
        running.append(RayHelpers(plan, ("b",), lambda: None))
        return running[-1], served

    yield started
    for each in running:
        each.close()


def call_until(helpers: RayHelpers, is_true: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        helpers.call()
        time.sleep(0.005)
    return is_true()


def test_tasks_that_fail_three_times_in_a_row_are_not_started_again(
    start: Callable[..., tuple[RayHelpers, Served]], caplog: pytest.LogCaptureFixture
) -> None:
    results = [(0, "no such file"), (5, "out of memory"), (0, "x"), RuntimeError("the actor died"), (0, "y")]
    helpers, served = start(results, [NODES])
    with caplog.at_level(logging.WARNING):
        assert call_until(helpers, lambda: "3 times in a row" in caplog.text)
        assert not call_until(helpers, lambda: len(served.nodes) > 5, 0.2)
    assert "tasks on other nodes failed (no such file); threads make their batches" in caplog.text
    assert "RuntimeError: the actor died" in caplog.text
    assert helpers.most() == 0


def test_an_execution_that_has_made_enough_is_followed_by_another(
    start: Callable[..., tuple[RayHelpers, Served]], caplog: pytest.LogCaptureFixture
) -> None:
    helpers, served = start([(10_000, "")], [NODES])
    assert call_until(helpers, lambda: len(served.nodes) > 5)
    assert not caplog.text


def test_a_node_that_joins_later_helps(start: Callable[..., tuple[RayHelpers, Served]]) -> None:
    helpers, served = start([(1, "")], [SpareNodes(), SpareNodes(), NODES])
    assert call_until(helpers, lambda: bool(served.nodes))
    assert served.nodes[0] == NODES


def test_nothing_is_started_before_it_is_wanted_or_for_a_short_stream(
    start: Callable[..., tuple[RayHelpers, Served]],
) -> None:
    _, served = start([(1, "")], [NODES])
    time.sleep(0.1)
    assert not served.nodes
    helpers, served = start([(1, "")], [NODES], patience=60)
    assert not call_until(helpers, lambda: bool(served.nodes), 0.1)
    begun = time.monotonic()
    helpers.close()
    assert time.monotonic() - begun < 1


def test_a_batch_asked_for_after_the_end_is_lost(start: Callable[..., tuple[RayHelpers, Served]]) -> None:
    helpers, _ = start([(1, "")], [NODES])
    helpers.ask(7)
    assert helpers.arrived() == [(7, None)]
    assert helpers.arrived() == []


def test_a_close_is_heeded_at_any_moment(start: Callable[..., tuple[RayHelpers, Served]]) -> None:
    helpers, _ = start([(1, "")], [NODES], patience=0.1)

    class ClosedWhileCleared(threading.Event):
        def clear(self) -> None:
            helpers._closed.set()
            self.set()
            super().clear()

    helpers._called = ClosedWhileCleared()
    helpers._thread.join(timeout=3)
    assert not helpers._thread.is_alive()


def test_a_cluster_that_does_not_answer_is_a_failure(
    start: Callable[..., tuple[RayHelpers, Served]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers, served = start([(1, "")], [NODES], patience=0.1)
    looks: Iterator[Any] = iter([ConnectionError("no answer")])

    def look(ranks: Any) -> SpareNodes:
        for error in looks:
            raise error
        return NODES

    monkeypatch.setattr(ray_helpers, "spare_nodes", look)
    assert call_until(helpers, lambda: bool(served.nodes))
    assert "tasks on other nodes failed (ConnectionError: no answer); threads make their batches" in caplog.text
