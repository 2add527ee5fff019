"""Several real Ray nodes on this machine: one helps to make batches, others train, and each of them may die."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.processes import process_tree
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_rows
from pipeline.loader.sample_order import Order
from tests.support.jobs import ROOT
from tests.support.trained.runs import trained_on

pytestmark = pytest.mark.ray

# Two ranks stream on the nodes that train, each with one thread, until the file "stop" is there. A line for each batch
# in the file of its rank: when it came, its rows, its pixels as SHA-256. A file for each batch that tasks have made.
STREAM = """
import hashlib, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from pipeline.cluster.session import ray_session
from pipeline.config.augment import Augment
from pipeline.dataset import manifest
from pipeline.loader.decode import best_decoder
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.streaming.carrier import carrier_line, stream_source
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.transform import Transform

uri, folder = sys.argv[1], Path(sys.argv[2])

@dataclass(frozen=True)
class Slow(Transform):
    folder: Path = Path()

    def load(self, index, rows, epoch, corrupt=None, watch=None, out=None):
        time.sleep(0.5)  # a CPU at work, of which this machine has too few for three nodes
        if out is None:
            (self.folder / f"task-{ray.get_runtime_context().get_node_id()}-{epoch}-{rows[0]}").touch()
        return super().load(index, rows, epoch, corrupt, watch, out)

@ray.remote(num_cpus=1)
def rank(number, nodes):
    os.environ["LOCAL_WORLD_SIZE"] = "64"  # one thread
    split = manifest.load(uri).split("train")
    order = Order(split.row_group_rows, 3, 5, 2)
    spec = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
    view = Slow(24, 24, spec, seed=3, decoder=best_decoder(), folder=folder)
    plan = StreamPlan(uri, split, TrainSampler(order, 1000 * order.steps_per_epoch, 0, 2, number), view)
    with open(folder / f"rank-{number}", "w", buffering=1) as out:
        out.write(carrier_line(uri, nodes, 2) + "\\n")
        batches = stream_source(plan, torch.device("cpu"), nodes, lambda line: out.write(line + "\\n"))(lambda: False)
        for batch in batches:
            pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
            rows = ",".join(map(str, batch.rows.tolist()))
            out.write(f"STEP {time.time()} {rows} {hashlib.sha256(pixels).hexdigest()}\\n")
            if (folder / "stop").exists():
                break
        batches.close()

with ray_session():
    train = [node["NodeID"] for node in ray.nodes() if "image-pipeline/role" not in node["Labels"]]
    (folder / "train").write_text(" ".join(train))
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in train]
    ray.get([rank.options(scheduling_strategy=place).remote(number, train) for number, place in enumerate(places)])
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nodes:
    """A head and a node beside it, as `ray start` starts them."""

    def __init__(self, folder: Path, cpus: int = 1) -> None:
        self.port, self.folder, self.cpus = free_port(), folder, cpus
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.port}"
        self.environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"  # Ray's default, which other tests switch off
        self.start("--head", f"--port={self.port}", f"--temp-dir={folder}", "--include-dashboard=false")
        self.start(f"--address=127.0.0.1:{self.port}")

    def start(self, *arguments: str) -> None:
        """Starts a node, and returns when it has joined."""
        ray = str(Path(sys.executable).with_name("ray"))
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        command = [ray, "start", "--block", "--node-ip-address=127.0.0.1", *arguments]
        if not any(each.startswith("--num-cpus") for each in arguments):
            command.append(f"--num-cpus={self.cpus}")
        command.append("--object-store-memory=300000000")
        log = open(self.folder / f"node-{len(self.processes)}.log", "wb")  # noqa: SIM115 - the process's
        self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (self.folder / f"node-{len(self.processes) - 1}.log").read_text():
            assert time.monotonic() < deadline, "a node doesn't start"
            time.sleep(0.2)

    def kill(self, number: int) -> None:
        """SIGKILL to a node's every process at once, as when a machine is gone."""
        for process in reversed(process_tree(self.processes[number].pid)):
            os.kill(process, signal.SIGKILL)
        self.processes[number].wait()

    def end(self) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(number)


@pytest.fixture(params=[1])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Two nodes of as many CPUs as the parameter says."""
    folder = Path(tempfile.mkdtemp(prefix="ray-nodes-", dir="/tmp"))
    both = Nodes(folder, request.param)
    yield both
    both.end()
    shutil.rmtree(folder, ignore_errors=True)


def expected(uri: str, rank: int, steps: int) -> list[tuple[str, str]]:
    """Returns (rows, SHA-256 of the pixels) of the first steps of one of two ranks, computed here, without Ray."""
    from pipeline.config.augment import Augment
    from pipeline.dataset.row_reader import load_index
    from pipeline.loader.decode import best_decoder
    from pipeline.loader.transform import Transform

    split = manifest.load(uri).split("train")
    order, index = Order(split.row_group_rows, 3, 5, 2), load_index(uri, split)
    spec = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
    view = Transform(24, 24, spec, seed=3, decoder=best_decoder())
    lines = []
    for step in range(steps):
        rows = order.rows(step, 2, rank)
        pixels = np.ascontiguousarray(view.load(index, rows, step // order.steps_per_epoch))
        lines.append((",".join(map(str, rows.tolist())), hashlib.sha256(pixels.tobytes()).hexdigest()))
    return lines


class Streams:
    """What two ranks have written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self, rank: int) -> list[list[str]]:
        """Returns [time, rows, SHA-256] of each batch that a rank had."""
        path = self._folder / f"rank-{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1:] for line in lines if line.startswith("STEP") and len(line.split()) == 4]

    def by_tasks(self) -> set[str]:
        """Returns the ids of the nodes of tasks, with the number of batches that they have made."""
        return {path.name.split("-")[1] for path in self._folder.glob("task-*")}

    def rate(self, start: float, stop: float) -> float:
        """Returns batches a second of both ranks between two times."""
        times = [float(time) for rank in (0, 1) for time, _, _ in self.steps(rank)]
        return sum(start < each <= stop for each in times) / (stop - start)


def wait_until(is_true: Callable[[], bool], process: "subprocess.Popen[bytes]", seconds: float = 120) -> float:
    """Waits, and returns the time. process: must not end meanwhile."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return time.time()


@pytest.mark.long
def test_a_third_node_helps_two_that_train_and_dies_and_every_batch_is_exact(
    nodes: Nodes, tree_dataset: str, tmp_path: Path
) -> None:
    """It has the role of augmentation alone, and the CPUs of both others. SIGKILL to it in the middle."""
    nodes.start(f"--address=127.0.0.1:{nodes.port}", "--labels=image-pipeline/role=augment", "--num-cpus=2")
    streams = Streams(tmp_path)
    command = [sys.executable, "-c", STREAM, tree_dataset, str(tmp_path)]
    process = subprocess.Popen(command, env=nodes.environment)
    try:
        first = wait_until(lambda: all(streams.steps(rank) for rank in (0, 1)), process)
        helped = wait_until(lambda: len(list(tmp_path.glob("task-*"))) > 8, process)
        time.sleep(3)
        start = time.time()
        time.sleep(6)
        nodes.kill(2)
        killed = time.time()
        wait_until(lambda: time.time() > killed + 12, process)
        (tmp_path / "stop").touch()
        assert process.wait(60) == 0
    finally:
        process.kill()
    alone, together = streams.rate(first, min(first + 5, helped)), streams.rate(start, killed)
    print(f"batches/s of two ranks: {alone:.1f} alone, {together:.1f} with the third node")
    print((tmp_path / "rank-0").read_text().splitlines()[0])
    train = set((tmp_path / "train").read_text().split())
    assert len(train) == 2
    assert len(streams.by_tasks() - train) == len(streams.by_tasks()) == 1
    assert streams.rate(killed + 4, killed + 12) > 0.3 * alone  # it goes on at once, by threads
    for rank in (0, 1):
        steps = streams.steps(rank)
        assert [(rows, pixels) for _, rows, pixels in steps] == expected(tree_dataset, rank, len(steps))


# Trains digits with one to two workers and prints what it is told, and where the workers' nodes are.
TRAIN = """
import sys
from dataclasses import replace
from jobs.terminal import command
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.session import ray_session
from pipeline.config.presets import make_recipe
from pipeline.training import launch
from pipeline.training.job import TrainJob

class Printing(command.Display):
    def __call__(self, stage, done, total, remark=""):
        print("PROGRESS", stage, done, total, remark, flush=True)

if __name__ == "__main__":
    recipe = replace(make_recipe("digits", epochs=20, global_batch_size=7), checkpoint_every_steps=100000)
    job = TrainJob(sys.argv[1], sys.argv[2], recipe, 4, 1, max_workers=2, cpus_per_worker=2, trace_rows=True,
                   resize_seconds=3)
    with ray_session(2):
        data = launch.check_job(job)
        launch.claim_run(job, data)
        with Printing() as display, remote_progress(display) as progress:
            launch.run_training(replace(job, progress=progress))
        print("DONE", flush=True)
"""


def second_node(nodes: Nodes) -> str:
    """Returns the id of the node that isn't the head."""
    code = (
        "import ray; ray.init(log_to_driver=False)\n"
        "print('NODE', *[n['NodeID'] for n in ray.nodes() if 'node:__internal_head__' not in n['Resources']])"
    )
    out = subprocess.run([sys.executable, "-c", code], env=nodes.environment, capture_output=True, text=True).stdout
    return out.split("NODE ")[1].split()[0]


@pytest.mark.long
@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_after_a_notice_a_node_goes_and_another_comes_and_the_order_stays(
    nodes: Nodes, digits_dataset: str, tmp_path: Path
) -> None:
    """2 workers; a spot notice of 25 s, then SIGKILL to the node; 1 worker; a new node; 2 workers again."""
    run, script = tmp_path / "run", tmp_path / "job.py"
    script.write_text(TRAIN)
    command = [sys.executable, str(script), digits_dataset, str(run)]
    process = subprocess.Popen(
        command,
        env=nodes.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ray = str(Path(sys.executable).with_name("ray"))
    told: list[str] = []
    noticed_step = killed_at = 0.0
    drained = added = False
    for line in process.stdout:
        told.append(line.strip())
        words = line.split()
        starts = [json.loads(path.read_text()) for path in sorted((run / "starts").glob("*.json"))]
        if words[:2] == ["PROGRESS", "train"] and not drained and int(words[2]) > 20:
            assert [start["world_size"] for start in starts] == [2]
            subprocess.run(
                [ray, "drain-node", f"--address=127.0.0.1:{nodes.port}", f"--node-id={second_node(nodes)}",
                 "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=25"],
                env=nodes.environment, check=True,
            )  # fmt: skip
            drained = True
        if words[:2] == ["PROGRESS", "notice"]:
            while not (run / "latest.json").exists():
                time.sleep(0.05)
            noticed_step = json.loads((run / "latest.json").read_text())["step"]
            nodes.kill(1)
            killed_at = time.time()
        if len(starts) == 2 and not added:
            nodes.start(f"--address=127.0.0.1:{nodes.port}")
            added = True
    assert process.wait(60) == 0, told[-20:]
    assert told[-1] == "DONE"
    starts = [json.loads(path.read_text()) for path in sorted((run / "starts").glob("*.json"))]
    assert [start["world_size"] for start in starts] == [2, 1, 2], told
    assert starts[1]["step"] == noticed_step  # what the notice saved, in the middle of an epoch
    assert noticed_step % 206
    print(f"notice: checkpoint at step {noticed_step}; back {starts[1]['time'] - killed_at:.1f} s after the kill")

    split = manifest.load(digits_dataset).split("train")
    order = Order(split.row_group_rows, 4, 7, None)
    seen = trained_on(str(run))
    keys = read_rows(digits_dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
    assert sorted(seen) == list(range(20 * order.steps_per_epoch))
    for step, batch in seen.items():
        assert batch == [keys[row] for row in order.rows(step)]


@pytest.mark.long
@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_when_the_head_has_gone_the_job_ends_and_the_same_command_goes_on_on_another_cluster(
    nodes: Nodes, digits_dataset: str, tmp_path: Path
) -> None:
    """SIGKILL to the head, with the job's controller and the state of Ray on it: nothing can go on there."""
    run, script = tmp_path / "run", tmp_path / "job.py"
    script.write_text(TRAIN.replace("=100000", "=50").replace("epochs=20", "epochs=5"))
    command = [sys.executable, str(script), digits_dataset, str(run)]
    process = subprocess.Popen(command, env=nodes.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "latest.json").exists() or json.loads((run / "latest.json").read_text())["step"] < 100:
        assert process.poll() is None
        time.sleep(0.1)
    nodes.kill(0)
    killed_at = time.time()
    assert process.wait(180) != 0
    ended_at = time.time()
    nodes.kill(1)
    saved = json.loads((run / "latest.json").read_text())["step"]
    folder = Path(tempfile.mkdtemp(prefix="ray-nodes-", dir="/tmp"))
    other = Nodes(folder, 2)
    begun_at = time.time()
    try:
        finished = subprocess.run(command, env=other.environment, capture_output=True, text=True, timeout=400)
    finally:
        other.end()
        shutil.rmtree(folder, ignore_errors=True)
    assert "DONE" in finished.stdout, finished.stderr[-2000:]
    starts = [json.loads(path.read_text()) for path in sorted((run / "starts").glob("*.json"))]
    second = next(start for start in starts if start["time"] > begun_at)
    assert second["step"] == saved
    print(
        f"the job ended {ended_at - killed_at:.1f} s after the head; on the new cluster it went on from step {saved} "
        f"after {second['time'] - begun_at:.1f} s"
    )
    split = manifest.load(digits_dataset).split("train")
    order, seen = Order(split.row_group_rows, 4, 7, None), trained_on(str(run))
    keys = read_rows(digits_dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
    assert seen == {step: [keys[row] for row in order.rows(step)] for step in range(5 * order.steps_per_epoch)}
