"""Two real Ray nodes on this machine, one of them with CPUs alone: both make batches, and it may die."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.bench_loader import process_tree
from pipeline import manifest
from tests.test_jobs import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Streams the batches of two epochs on the cluster; a line each: step, node of the task, rows and pixels as SHA-256.
CODE = """
import hashlib, sys, time
from dataclasses import dataclass
import numpy as np
import ray
from jobs import command
from pipeline import loader, manifest
from pipeline.decode import best_decoder
from pipeline.order import Order
from pipeline.recipes import Augment
from pipeline.units import TrainUnits
from pipeline.view import View

@dataclass(frozen=True)
class Telling(View):
    folder: str = ""

    def batch(self, index, rows, epoch, corrupt=None, watch=None):
        time.sleep(0.3)  # so that there is a middle to be killed in
        open(f"{self.folder}/{ray.get_runtime_context().get_node_id()}-{epoch}-{rows[0]}", "w").close()
        return super().batch(index, rows, epoch, corrupt, watch)

uri = sys.argv[1]
split = manifest.load(uri).split("train")
order = Order(split.row_group_rows, 3, 5, 2)
spec = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
view = Telling(24, 24, spec, seed=3, decoder=best_decoder(), folder=sys.argv[2])
with command.ray_session():
    for batch in loader.stream_batches(uri, split, TrainUnits(order, 2 * order.steps_per_epoch * 4), view):
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
        rows = ",".join(map(str, batch.rows.tolist()))
        print("STEP", batch.unit, rows, hashlib.sha256(pixels).hexdigest(), flush=True)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nodes:
    """A head and a node beside it, as `ray start` starts them."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.port}"
        self.environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("--head", f"--port={self.port}", f"--temp-dir={folder}", "--include-dashboard=false")
        self._start(f"--address=127.0.0.1:{self.port}")

    def _start(self, *arguments: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        command = [ray, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", *arguments]
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


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="ray-nodes-", dir="/tmp"))
    both = Nodes(folder)
    yield both
    both.end()
    shutil.rmtree(folder, ignore_errors=True)


def expected(uri: str) -> list[tuple[str, str]]:
    """Returns (rows, SHA-256 of the pixels) of every step, computed here, without Ray."""
    import numpy as np

    from pipeline.decode import best_decoder
    from pipeline.order import Order
    from pipeline.recipes import Augment
    from pipeline.rows import load_index
    from pipeline.view import View

    split = manifest.load(uri).split("train")
    order, index = Order(split.row_group_rows, 3, 5, 2), load_index(uri, split)
    spec = Augment(resized_crop_area=(0.3, 1.0), flip_probability=0.5)
    view = View(24, 24, spec, seed=3, decoder=best_decoder())
    lines = []
    for step in range(8 * order.steps_per_epoch):
        rows = order.rows(step)
        pixels = np.ascontiguousarray(view.batch(index, rows, step // order.steps_per_epoch))
        lines.append((",".join(map(str, rows.tolist())), hashlib.sha256(pixels.tobytes()).hexdigest()))
    return lines


def test_a_node_dies_in_the_middle_of_an_epoch_and_no_row_is_lost_or_doubled(
    nodes: Nodes, tree_dataset: str, tmp_path: Path
) -> None:
    (told := tmp_path / "told").mkdir()
    command = [sys.executable, "-c", CODE, tree_dataset, str(told)]
    process = subprocess.Popen(command, env=nodes.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[tuple[str, ...]] = []
    workers: set[str] = set()
    for line in process.stdout:
        if line.startswith("STEP"):
            lines.append(tuple(line.split()[2:]))
            if len(workers) < 2:
                workers = {path.name.split("-")[0] for path in told.iterdir()}
                if len(workers) == 2:  # both make batches
                    nodes.kill(1)
                    killed_at = len(lines)
    assert process.wait(60) == 0
    assert len(workers) == 2
    assert killed_at < 80
    assert lines == expected(tree_dataset)
