"""The dashboard and the alerts ask for metrics that a real run exposes, in a real Prometheus where there is one."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.presets import make_recipe
from pipeline.loader.batch import Batch
from pipeline.storage.local_s3 import await_answer, free_ports
from pipeline.training import launch, loop
from pipeline.training.job import TrainJob
from pipeline.training.trackers import make_ray_metrics
from pipeline.training.worker import Worker

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
_NAME = re.compile(r"\b(ray_\w+)\b")


def panels() -> dict[str, list[str]]:
    """Returns {title: queries} of the dashboard, for any run."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return {
        panel["title"]: [
            target["expr"].replace("$run", ".*").replace("$workspace", ".*") for target in panel["targets"]
        ]
        for panel in dashboard["panels"]
    }


def alerts() -> dict[str, str]:
    """Returns {name: query} of the rules."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def asked() -> set[str]:
    """Returns the names of all metrics that a query asks for."""
    queries = [query for several in panels().values() for query in several] + list(alerts().values())
    return {name for query in queries for name in _NAME.findall(query)}


def test_the_rules_are_prometheus_rules_and_the_dashboard_is_complete() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) == 18
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == 18
    assert all(panel["description"] for panel in dashboard["panels"])
    runbook = (MONITORING.parents[1] / "docs" / "clusters" / "runbook.md").read_text()
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            for number in re.findall(r"\d+", rule["annotations"]["runbook"].split(",")[1]):
                assert f"| {number} |" in runbook
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "rules", MONITORING / "alerts.yml"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def watched(ray_cluster: None, digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainJob]:
    """A run of three epochs that trains meanwhile. It rests between steps until nobody looks any more."""
    run = tmp_path_factory.mktemp("watched") / "run"
    job = TrainJob(digits_dataset, str(run), make_recipe("digits", epochs=3), trackers=(make_ray_metrics,))
    launch.claim_run(job, launch.check_job(job))
    unwatched, step = threading.Event(), loop.step

    def leisurely_step(worker: Worker, batch: Batch) -> float:
        unwatched.wait(0.3)
        return step(worker, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", leisurely_step)
        thread = threading.Thread(target=launch.run_training, args=(job,))
        thread.start()
        yield job
        unwatched.set()
        thread.join()


@pytest.fixture(scope="module")
def exposed(watched: TrainJob) -> dict[str, float]:
    """{name: a value} of all metrics that the node shows meanwhile.

    Several looks: what the tests' short reporting interval forgets between two values is there in some of them.
    """
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not asked() <= found.keys():
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        found |= {re.split(r"[{ ]", line)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
        time.sleep(0.2)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_no_query_asks_for_a_metric_that_a_run_does_not_expose(exposed: dict[str, float]) -> None:
    assert len(asked()) > 10
    assert asked() - exposed.keys() == set()
    assert exposed["ray_image_pipeline_step"] > 0
    assert exposed["ray_image_pipeline_starts"] == 1
    assert exposed["ray_image_pipeline_skipped_steps"] == 0


@pytest.fixture
def prometheus(exposed: dict[str, float], tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that looks at this session's Ray every second."""
    import ray

    session = ray._private.worker.global_worker.node.get_temp_dir_path()
    text = (MONITORING / "prometheus.yml").read_text()
    text = text.replace("/tmp/ray/", f"{session}/").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    flags = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", *flags, f"--web.listen-address={address}"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        await_answer(f"http://{address}/-/ready")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        values = json.load(answer)
    assert values["status"] == "success", values
    found: list[dict[str, Any]] = values["data"]["result"]
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus isn't installed (Debian's package)")
def test_prometheus_answers_every_panel_and_evaluates_every_rule(prometheus: str) -> None:
    queries = {query: title for title, several in panels().items() for query in several}
    missing = {query: title for query, title in queries.items() if "ray_" in query}  # others are of retraining runs
    deadline = time.monotonic() + 40
    while missing and time.monotonic() < deadline:  # rates need several looks
        missing = {query: title for query, title in missing.items() if not ask(prometheus, query)}
        time.sleep(0.3)
    assert missing == {}
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(alerts())
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
