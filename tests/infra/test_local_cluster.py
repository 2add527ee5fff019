"""Several real Ray nodes, a real S3 and a token, as infra/local/up.sh starts them: jobs submitted, nodes that go."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.local.ray_cluster import Cluster
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_rows
from pipeline.loader.sample_order import Order
from pipeline.storage import files
from tests.support.jobs import ROOT
from tests.support.pictures.images import shared
from tests.support.trained.runs import trained_on

pytestmark = [pytest.mark.ray, pytest.mark.long]
PROGRAMS = Path(sys.executable).parent
WORK = "s3://images/work"


class Client:
    """Who submits jobs to a cluster, from a shell in which its `env` was sourced."""

    def __init__(self, name: str, *flags: str) -> None:
        self.name = name
        self.environment = {**os.environ, "UV_RUN": "", "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        done = subprocess.run(
            [ROOT / "infra" / "local" / "up.sh", "--name", name, *flags],
            env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.cluster = Cluster(name)
        shell = ["sh", "-c", f". '{self.cluster.folder}/env'; env -0"]
        sourced = subprocess.run(shell, env=self.environment, capture_output=True, check=True, text=True).stdout
        self.environment = dict(each.split("=", 1) for each in sourced.split("\0") if each)

    def submit(self, *entrypoint: str) -> "subprocess.Popen[str]":
        """Starts `ray job submit` of a Python job."""
        line = ["ray", "job", "submit", "--working-dir", str(ROOT), "--", "python", *entrypoint]
        return subprocess.Popen(
            line, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )

    def run(self, *entrypoint: str) -> str:
        """Returns what a job prints that must succeed."""
        process = self.submit(*entrypoint)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
        assert "succeeded" in said
        return said

    def down(self) -> None:
        done = subprocess.run(
            [ROOT / "infra" / "local" / "down.sh", "--name", self.name], env=self.environment, capture_output=True
        )
        assert done.returncode == 0
        assert not self.cluster.folder.exists()
        port = self.environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]
        assert not [path for path in Path("/tmp").glob("seaweedfs-*") if port in path.name]

    def nodes(self) -> dict[str, str]:
        """Returns {ID: label of its role, or ""} of the nodes that live."""
        code = "import ray, json; ray.init(log_to_driver=False); print('NODES', json.dumps(ray.nodes()))"
        environment = {
            **self.environment,
            "RAY_ADDRESS": f"{self.cluster.address('head')}:{self.cluster.state['port']}",
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        found = json.loads(done.stdout.split("NODES ", 1)[1])
        return {each["NodeID"]: each["Labels"].get("image-pipeline/role", "") for each in found if each["Alive"]}


@pytest.fixture
def storage_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has this process use the S3 of a client."""

    def use(client: Client) -> None:
        for name, value in client.environment.items():
            if name.startswith("AWS_"):
                monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A cluster of a head and three nodes, one of them for augmentation alone."""
    made = Client(f"test{os.getpid()}", "--nodes", "3", "--cpu-only", "1", *getattr(request, "param", []))
    yield made
    made.down()


def train_flags(epochs: int, cluster: Cluster) -> list[str]:
    data = f"{WORK}/raw/imagenette-mini.tar"
    return [
        "jobs/imagenet_resnet.py", "--data", data, "--storage", WORK, "--recipe", "resnet18-smoke", "--workers", "2",
        "--run-name", "one", "--epochs", str(epochs), "--global-batch-size", "32", "--trace-rows",
        "--cache", f"{cluster.folder}/images",
    ]  # fmt: skip


def check_order(epochs: int) -> None:
    """Every global batch of the run holds the images that the order says, computed here."""
    dataset = f"{WORK}/datasets/{files.list_directories(f'{WORK}/datasets')[0]}"
    split = manifest.load(dataset).split("train")
    run = f"{WORK}/runs/one"
    config = files.read_json(f"{run}/config.json")
    recipe = config["recipe"]
    window, runs = recipe["shuffle_window_row_groups"], recipe["shuffle_run_rows"]
    order = Order(split.row_group_rows, config["seed"], 32, window, run_rows=runs)
    keys = read_rows(dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
    seen = trained_on(run)
    assert sorted(seen) == list(range(epochs * order.steps_per_epoch))
    for step, batch in seen.items():
        assert batch == [keys[row] for row in order.rows(step)]


def steps_done(line: str) -> int:
    """Steps that a line of progress tells of."""
    return int(line.split()[1].split("/")[0]) if line.startswith("train ") else 0


def starts() -> list[dict[str, Any]]:
    folder = f"{WORK}/runs/one/starts"
    return [files.read_json(f"{folder}/{name}") for name, _ in files.list_files(folder)]


def test_three_nodes_ingest_train_on_two_and_evaluate_by_submitted_jobs_and_one_is_killed(
    client: Client, storage_of: Any
) -> None:
    """Without the token nothing is to be had. SIGKILL to a node that trains: the job succeeds, the order is exact."""
    storage_of(client)
    anybody = {name: value for name, value in client.environment.items() if not name.startswith("RAY_AUTH")}
    refused = subprocess.run(
        ["ray", "job", "list"], env={**anybody, "HOME": str(client.cluster.folder)}, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stdout + refused.stderr
    files.write_bytes(f"{WORK}/raw/imagenette-mini.tar", Path(shared("imagenette-mini.tar")).read_bytes())
    roles = client.nodes()
    assert sorted(roles.values()) == ["", "", "", "augment"]

    process = client.submit(*train_flags(3, client.cluster))
    assert process.stdout is not None
    told, killed_at = [], 0.0
    for line in process.stdout:
        told.append(line)
        if not killed_at and steps_done(line) >= 45:  # in the second epoch
            client.cluster.kill("node-2")
            killed_at = time.time()
    assert process.wait() == 0, "".join(told)
    assert "succeeded" in "".join(told[-3:])
    runs = starts()
    assert len(runs) == 2, runs
    assert len(set(runs[0]["nodes"])) == 2
    assert all(roles[node] == "" for each in runs for node in each["nodes"])
    check_order(3)
    print(f"seconds from the kill to the next start: {runs[1]['time'] - killed_at:.1f}, at step {runs[1]['step']}")
    evaluated = client.run(
        "jobs/evaluate.py", "--checkpoint", f"{WORK}/runs/one", "--workers", "2", "--out", f"{WORK}/evaluation",
        "--data", f"{WORK}/datasets/{files.list_directories(f'{WORK}/datasets')[0]}",
    )  # fmt: skip
    assert "of 400)" in evaluated
    assert list((client.cluster.folder / "images").glob("*/0000000"))  # row groups are kept


def head_answers(client: Client, certificate: bool) -> bool:
    """Whether the head says a word of gRPC to one who has a certificate of the cluster's, or has none."""
    settings = client.environment
    context = ssl.create_default_context(cafile=settings["RAY_TLS_CA_CERT"])
    context.set_alpn_protocols(["h2"])
    if certificate:
        context.load_cert_chain(settings["RAY_TLS_SERVER_CERT"], settings["RAY_TLS_SERVER_KEY"])
    host = client.cluster.address("head")
    with socket.create_connection((host, client.cluster.state["port"]), 10) as wire:
        try:
            with context.wrap_socket(wire, server_hostname=host) as encrypted:
                encrypted.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                return len(encrypted.recv(100)) > 0
        except ssl.SSLError as error:
            if "CERTIFICATE_REQUIRED" not in str(error):
                raise
            return False


@pytest.mark.skipif(
    shutil.which("redis-server") is None and shutil.which("valkey-server") is None, reason="Redis isn't installed"
)
@pytest.mark.parametrize("client", [["--tls", "--redis"]], indirect=True)
def test_a_head_that_died_goes_on_with_its_nodes_and_the_same_job_with_its_run(client: Client, storage_of: Any) -> None:
    """Its state is in Redis. Calls are encrypted, and whoever has no certificate gets no answer."""
    storage_of(client)
    files.write_bytes(f"{WORK}/raw/imagenette-mini.tar", Path(shared("imagenette-mini.tar")).read_bytes())
    assert head_answers(client, certificate=True)
    assert not head_answers(client, certificate=False)
    before = client.nodes()
    process = client.submit(*train_flags(3, client.cluster))
    assert process.stdout is not None
    killed_at = 0.0
    for line in process.stdout:
        if not killed_at and steps_done(line) >= 45:
            client.cluster.kill("head")
            killed_at = time.time()
    assert process.wait() != 0  # the driver was on it
    client.cluster.start("head")
    back_after = time.time() - killed_at
    after = client.nodes()
    assert len(before) == len(after) == 4
    assert len(set(before) - set(after)) == 1  # the head itself
    jobs = subprocess.run(["ray", "job", "list"], env=client.environment, capture_output=True, text=True, cwd=ROOT)
    assert jobs.stdout.count("entrypoint='python jobs/imagenet_resnet.py") == 1, jobs.stdout
    assert "succeeded" in client.run(*train_flags(3, client.cluster))
    assert len(starts()) == 2
    assert starts()[1]["step"] > 0
    check_order(3)
    print(f"seconds from the head's end: back {back_after:.1f}, next start {starts()[1]['time'] - killed_at:.1f}")


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("ip") is None, reason="networks of their own need root and iproute2"
)
@pytest.mark.parametrize("client", [["--namespaces"]], indirect=True)
@pytest.mark.parametrize("away_seconds", [60.0, None])
def test_a_node_that_trains_is_cut_off_and_the_job_succeeds_in_exact_order(
    client: Client, storage_of: Any, away_seconds: float | None
) -> None:
    """For a minute, after which it is back, or for good. Each node has a network and an address of its own."""
    with pytest.raises(AssertionError, match="another cluster has --namespaces here"):
        Client(f"{client.name}-second", "--nodes", "1", "--cpu-only", "0", "--namespaces")  # leaves the first as it is
    storage_of(client)
    files.write_bytes(f"{WORK}/raw/imagenette-mini.tar", Path(shared("imagenette-mini.tar")).read_bytes())
    process = client.submit(*train_flags(3, client.cluster))
    assert process.stdout is not None
    told, cut_at = [], 0.0
    for line in process.stdout:
        told.append(line)
        if not cut_at and steps_done(line) >= 45:
            client.cluster.cut("node-2")
            cut_at = time.time()
            if away_seconds:
                threading.Timer(away_seconds, client.cluster.join, ["node-2"]).start()
    assert process.wait() == 0, "".join(told)
    assert "succeeded" in "".join(told[-3:])
    check_order(3)
    again = [start for start in starts() if start["time"] > cut_at]
    seconds = [f"{start['time'] - cut_at:.1f} at step {start['step']}" for start in again]
    print(f"cut off for {away_seconds or 'ever'}: starts after {seconds} s; ended after {time.time() - cut_at:.0f} s")
