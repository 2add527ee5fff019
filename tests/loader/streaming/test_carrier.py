"""Who makes batches: threads, or tasks of Ray Data where nodes have no rank."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline.cluster import resources
from pipeline.cluster.resources import spare_cpus, this_node
from pipeline.loader.streaming import carrier
from pipeline.loader.streaming.carrier import carrier_line, stream_source
from pipeline.loader.streaming.plan import StreamPlan


def node(name: str, cpus: float, alive: bool = True) -> dict[str, object]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {}}


@pytest.mark.parametrize(
    ("rank_nodes", "spare"),
    [
        ({"a", "b", "c"}, 0),  # a rank on every node that is there
        ({"a", "b"}, 8),
        ({"a"}, 12),
        (set(), 16),
    ],
)
def test_spare_cpus_are_those_of_nodes_without_ranks(
    monkeypatch: pytest.MonkeyPatch, rank_nodes: set[str], spare: float
) -> None:
    nodes = [node("a", 4), node("b", 4), node("c", 8), node("head", 0), node("gone", 64, alive=False)]
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: True)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert spare_cpus(rank_nodes) == spare


def test_without_ray_there_is_nothing_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: False)
    assert (spare_cpus(()), this_node()) == (0, "")


@pytest.mark.parametrize(("spare", "made_by"), [(0.0, "threads"), (2.0, "tasks")])
def test_tasks_make_batches_only_where_nodes_have_no_rank(
    monkeypatch: pytest.MonkeyPatch, spare: float, made_by: str
) -> None:
    monkeypatch.setattr(carrier, "spare_cpus", lambda nodes: spare)
    monkeypatch.setattr(carrier, "ray_source", lambda plan: "tasks")
    monkeypatch.setattr(carrier, "thread_source", lambda plan, pinned: "threads")
    plan: StreamPlan = None  # type: ignore[assignment]
    assert stream_source(plan, torch.device("cpu"), {"a"}) == made_by  # type: ignore[comparison-overlap]
    assert made_by in carrier_line("/data", {"a"})
