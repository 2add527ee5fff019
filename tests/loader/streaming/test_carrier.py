"""Who makes batches: threads, and tasks of Ray Data where nodes have no rank."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.cluster import resources
from pipeline.cluster.resources import SpareNodes, node_store_bytes, spare_nodes, this_node
from pipeline.loader.streaming import carrier
from pipeline.loader.streaming.carrier import carrier_line, stream_source
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.ray_helpers import tasks_of_rank


def node(name: str, cpus: float, alive: bool = True) -> dict[str, Any]:
    found = {"object_store_memory": 100.0, **({"CPU": cpus} if cpus else {})}
    return {"NodeID": name, "Alive": alive, "Resources": found}


@pytest.mark.parametrize(
    ("rank_nodes", "spare"),
    [
        ({"a", "b", "c"}, SpareNodes()),  # a rank on every node that is there
        ({"a", "b"}, SpareNodes(("c",), 8, 100)),
        ({"a"}, SpareNodes(("b", "c"), 12, 200)),
        (set(), SpareNodes(("a", "b", "c"), 16, 300)),
    ],
)
def test_spare_nodes_are_those_without_ranks(
    monkeypatch: pytest.MonkeyPatch, rank_nodes: set[str], spare: SpareNodes
) -> None:
    nodes = [node("a", 4), node("b", 4), node("c", 8), node("head", 0), node("gone", 64, alive=False)]
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: True)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert spare_nodes(rank_nodes) == spare


def test_without_ray_there_is_nothing_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: False)
    assert (spare_nodes(()), this_node(), node_store_bytes()) == (SpareNodes(), "", 0)


def test_without_ray_threads_make_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "ray_is_initialized", lambda: False)
    monkeypatch.setattr(carrier, "thread_source", lambda plan, pinned: "threads")
    plan: StreamPlan = None  # type: ignore[assignment]
    assert stream_source(plan, torch.device("cpu"), {"a"}, print) == "threads"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("cpus", "world_size", "tasks"), [(8, 1, 16), (8, 8, 2), (8, 5, 3), (8, 64, 1), (0.5, 1, 1), (96, 16, 12)]
)
def test_a_rank_has_its_share_of_the_spare_cpus(cpus: float, world_size: int, tasks: int) -> None:
    """Two tasks share a CPU."""
    assert tasks_of_rank(SpareNodes(("a",), cpus, 1), world_size) == tasks


BY_THREADS = "batches: by {} in each training process"


@pytest.mark.parametrize(
    ("spare", "threads", "line"),
    [
        (SpareNodes(), 4, BY_THREADS.format("4 threads")),
        (SpareNodes(), 1, BY_THREADS.format("one thread")),
        (
            SpareNodes(("a",), 1, 1),
            1,
            BY_THREADS.format("one thread")
            + "; while they are behind, by 1 task for each on 1 node that doesn't train, too",
        ),
        (
            SpareNodes(("a", "b"), 8, 1),
            4,
            BY_THREADS.format("4 threads")
            + "; while they are behind, by 8 tasks for each on 2 nodes that don't train, too",
        ),
    ],
)
def test_it_is_said_who_makes_the_batches(
    monkeypatch: pytest.MonkeyPatch, spare: SpareNodes, threads: int, line: str
) -> None:
    monkeypatch.setattr(carrier, "spare_nodes", lambda nodes: spare)
    monkeypatch.setattr(carrier, "decode_threads", lambda remote: threads)
    assert carrier_line("/data", {"a"}, 2) == line
