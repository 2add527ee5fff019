"""What a worker gets of a cluster, and waiting for nodes."""

import threading
import time

import pytest

from pipeline.cluster import resources, session
from pipeline.cluster.ray_train import scaling_config
from pipeline.core.errors import ClusterError, RecipeError
from pipeline.evaluation import Workers
from pipeline.evaluation.runner import EvaluateJob
from pipeline.evaluation.workers import evaluation_session


@pytest.mark.parametrize(
    ("workers", "use_gpu", "nodes", "expected"),
    [
        (1, False, [2.0], 1),  # one is left for reading
        (2, False, [3.0], 1),
        (2, False, [2.0], 0.5),  # shares where there are no whole ones
        (1, False, [16.0], 15),
        (4, True, [16.0, 16.0], 1),
        (2, False, [2.0, 2.0, 2.0], 1),  # of three nodes one may go, and there is still one CPU for reading
        (2, False, [1.0, 1.0, 1.0], 0.5),
        (1, False, [8.0, 8.0], 7),
        (1, False, [8.0, 8.0, 8.0], 8),  # not more than a node has
        (3, False, [16.0, 16.0, 16.0, 4.0], 11),
    ],
)
def test_what_a_worker_gets(workers: int, use_gpu: bool, nodes: list[float], expected: float) -> None:
    cpus = resources.worker_cpus(workers, use_gpu, nodes)
    assert cpus == expected
    if not use_gpu and len(nodes) > 1:
        assert workers * cpus + 1 <= sum(nodes) - max(nodes)


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "expected"),
    [("auto", 2, 2, True), ("auto", 3, 2, False), ("auto", 0, 2, False), ("gpu", 8, 0, True), ("cpu", 1, 4, False)],
)
def test_who_gets_gpus(device: resources.Device, workers: int, gpus: int, expected: bool) -> None:
    assert resources.workers_use_gpus(device, workers, gpus) is expected


def test_gpus_for_nobody_are_refused() -> None:
    with pytest.raises(RecipeError, match="device=gpu needs workers"):
        resources.workers_use_gpus("gpu", 0, 1)


@pytest.mark.parametrize(
    ("workers", "device", "words"),
    [
        (99, "auto", "workers=99 are too many for the 2 CPUs of this machine; use --workers 2 or fewer"),
        (5, "cpu", "workers=5 are too many"),
        (1, "gpu", "device=gpu: torch .*; use --device auto or cpu"),
        (None, "gpu", "device=gpu: torch .*; use --device auto or cpu"),
    ],
)
def test_what_this_machine_cannot_hold_is_refused_before_anything_starts(
    workers: int | None, device: resources.Device, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "usable_cpus", lambda: 2)
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=words):
        resources.check_machine(workers, device)
    asked: list[str] = []
    monkeypatch.setattr(resources, "check_cluster", asked.append)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    resources.check_machine(workers, device)  # the cluster may have them
    assert asked == ["head:6379"]


def test_few_workers_and_workers_with_a_gpu_each_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "usable_cpus", lambda: 1)
    monkeypatch.setattr(resources, "ray_is_initialized", lambda: False)
    resources.check_machine(4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    resources.check_machine(8, "gpu")
    with pytest.raises(ClusterError, match="workers=9 need a GPU each with device=gpu, this machine has 8"):
        resources.check_machine(9, "gpu")


def test_gpus_for_an_evaluation_in_this_process_are_refused() -> None:
    job = EvaluateJob("model", "data", "out")
    with pytest.raises(RecipeError, match="device=gpu needs workers"), evaluation_session(job, Workers(0, "gpu")):
        pass


@pytest.mark.parametrize(("use_gpu", "strategy"), [(True, "PACK"), (False, "SPREAD")])
def test_workers_are_spread_over_nodes_or_packed_with_gpus_and_never_on_a_node_for_augmentation(
    use_gpu: bool, strategy: str
) -> None:
    made = scaling_config(2, use_gpu, 1.5)
    assert made.placement_strategy == strategy
    assert made.resources_per_worker == {"CPU": 1.5, **({"GPU": 1} if use_gpu else {})}
    assert made.label_selector == {"image-pipeline/role": "!augment"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_are_waited_for_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.autoscaler import sdk

    asked: list[object] = []
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(resources, "_LOOK_EVERY_SECONDS", 0.05)
    with pytest.raises(ClusterError, match=r"workers=2 need 2 GPUs, the cluster has 0; .*--wait-minutes N"):
        resources.wait_for_resources(2, True, 0, lambda *_: None)
    assert asked == []
    told: list[tuple[object, ...]] = []
    have = {"CPU": 4.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    threading.Timer(0.5, lambda: have.update(GPU=2.0)).start()
    start = time.monotonic()
    resources.wait_for_resources(2, True, 1, lambda *stage: told.append(stage))
    assert time.monotonic() - start >= 0.4
    assert told[0] == ("nodes", 0, 2, "GPUs; waiting for the others")
    assert asked == [[{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 1}], []]
