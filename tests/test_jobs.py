"""The jobs from outside: real command lines in real processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint
from pipeline.manifest import load
from pipeline.order import Order
from tests.conftest import jpeg, make_tar, make_tree, tree_files

ROOT = Path(__file__).parent.parent


def command(job: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]


def run_job(job: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # A proxy that nobody runs: no job of a test reaches the network.
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "https_proxy": "http://127.0.0.1:9"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        command(job, *arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def one_line_error(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 2, finished.stdout + finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("cifar10", ["--data", "nothere"], "nothere: no such file, folder or data set"),
        ("cifar10", ["--recipe", "cifar-10"], "recipe='cifar-10' is unknown; did you mean cifar10"),
        ("cifar10", ["--workers", "3", "--global-batch-size", "100"], "use 99 or 102"),
        ("cifar10", ["--optimizer", "adma"], "did you mean adam"),
        ("cifar10", ["--workers", "-1"], "workers=-1 must be 0"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_anything_starts(
    tmp_path: Path, job: str, arguments: list[str], message: str
) -> None:
    assert message in one_line_error(run_job(job, *arguments, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_an_error(tmp_path: Path) -> None:
    finished = run_job("cifar10", "--epoch", "3", cwd=tmp_path)
    assert finished.returncode == 2
    assert "--epochs" in finished.stderr


def test_bad_sources_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no file" in one_line_error(run_job("ingest", "--source", "empty", "--out", "out", cwd=tmp_path))
    assert not (tmp_path / "out" / "manifest.json").exists()

    files = tree_files(make_tree(tmp_path / "tree"))
    make_tar(tmp_path / "bad.tar", {**files, "train/bee/002.jpg": b"I am text"})
    message = one_line_error(run_job("ingest", "--source", "bad.tar", "--out", "out", cwd=tmp_path))
    assert "train/bee/002.jpg: is no readable image (it begins with b'I am text')" in message
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob("_spool*"))

    done = run_job("ingest", "--source", "tree", "--out", "out", cwd=tmp_path)  # the same target, mended
    assert done.returncode == 0, done.stderr
    assert load(str(tmp_path / "out")).digest in done.stdout


def test_the_readmes_first_command_works_offline(tmp_path: Path) -> None:
    """It can't have CIFAR-10, so it trains on the digits and says so in every place that people look at."""
    finished = run_job("cifar10", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "CIFAR-10 can't be downloaded here" in finished.stdout
    assert "NOT CIFAR-10" in finished.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert "digits-not-cifar10" in run.name
    values = json.loads((run / "result.json").read_text())
    assert values["dataset"]["name"] == "digits-not-cifar10"
    assert values["val"]["top1"] >= 0.97
    assert "not CIFAR-10" in (run / "report.html").read_text()
    assert str(run / "report.html") in finished.stdout.replace("\n", "").replace(" ", "")


TRAIN = ["--recipe", "digits", "--epochs", "6", "--trace-rows"]


def weights(run: Path) -> str:
    model = torch.load(run / "model.pt", weights_only=True)["model"]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(model.items()))).hexdigest()


def traced(run: Path) -> dict[int, list[str]]:
    """Returns {step: keys}; of a step that was done twice, the last time counts."""
    lines = [line for path in sorted((run / "rows").iterdir()) for line in path.read_text().splitlines()]
    return {entry["step"]: entry["keys"] for entry in map(json.loads, lines)}


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path, digits_dataset: str) -> None:
    train = [*TRAIN, "--data", digits_dataset]
    quiet = run_job("cifar10", *train, "--run-dir", "quiet", cwd=tmp_path)
    assert quiet.returncode == 0, quiet.stderr

    process = subprocess.Popen(
        command("cifar10", *train, "--run-dir", "killed"), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    rows = tmp_path / "killed" / "rows" / "from-step-000000000-rank-0-of-1.jsonl"
    deadline = time.monotonic() + 120
    # 12 steps an epoch, checkpoints at their ends: kill in the middle of the third epoch
    while not (rows.exists() and rows.read_text().count("\n") >= 29):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.all_steps(str(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "result.json").exists()

    again = run_job("cifar10", *train, "--run-dir", "killed", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    resumed = [path.name for path in (tmp_path / "killed" / "rows").iterdir()]
    assert any(name.startswith(("from-step-000000024", "from-step-000000036")) for name in resumed), resumed
    assert weights(tmp_path / "killed") == weights(tmp_path / "quiet")
    assert traced(tmp_path / "killed") == traced(tmp_path / "quiet")

    # each row once an epoch, in the order that anyone can recompute
    split = load(digits_dataset).split("train")
    order = Order(split.row_group_rows, 0, 128)
    steps = traced(tmp_path / "quiet")
    assert len(steps) == 6 * order.steps_per_epoch
    for epoch in range(6):
        keys = [key for step in range(12 * epoch, 12 * epoch + 12) for key in steps[step]]
        assert len(keys) == len(set(keys)) == split.rows

    values = json.loads((tmp_path / "quiet" / "result.json").read_text())
    for name in ("dataset", "recipe", "seed", "world_size", "epochs", "steps", "train_seconds", "images_per_second",
                 "data_wait_fraction", "val", "versions", "git_commit"):  # fmt: skip
        assert name in values
    assert values["val"]["rows"] == 359
    assert "NOT CIFAR-10" in quiet.stdout

    # finished: said so, nothing trained, nothing changed; and another recipe is refused with the difference
    before = (tmp_path / "quiet" / "result.json").read_bytes()
    finished = run_job("cifar10", *train, "--run-dir", "quiet", cwd=tmp_path)
    assert "finished already" in finished.stdout
    other = run_job("cifar10", *train, "--run-dir", "quiet", "--seed", "1", cwd=tmp_path)
    assert "holds another run (seed was 0, now 1)" in one_line_error(other)
    assert (tmp_path / "quiet" / "result.json").read_bytes() == before


def test_a_diverging_run_is_told_what_to_change(tmp_path: Path, digits_dataset: str) -> None:
    finished = run_job(
        "cifar10", "--data", digits_dataset, "--recipe", "digits", "--optimizer", "sgd", "--learning-rate", "1e30",
        "--epochs", "2", cwd=tmp_path,
    )  # fmt: skip
    assert "training diverged; lower learning_rate" in one_line_error(finished)


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    sessions = set(Path("/tmp").glob("ray-*"))
    tree = make_tree(tmp_path / "tree")
    for number in range(3000):
        (tree / "train" / "ant" / f"x{number}.jpg").write_bytes(jpeg(0))
    process = subprocess.Popen(
        command("ingest", "--source", "tree", "--out", "out"), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(9)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) in (0, 130)
    left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout
    assert left == ""
    assert set(Path("/tmp").glob("ray-*")) <= sessions


def test_a_local_ray_leaves_no_token_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    make_tree(tmp_path / "tree")
    finished = run_job("ingest", "--source", "tree", "--out", "out", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert not (tmp_path / ".ray").exists()
