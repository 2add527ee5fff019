"""Ctrl-C and SIGTERM at random moments of a run: nothing is lost, and the printed command works as printed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.support.jobs import SIX_EPOCHS, command

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def begin(line: str | list[str], folder: Path) -> subprocess.Popen[str]:
    """Starts a command line in a session of its own."""
    return subprocess.Popen(
        f"exec {line}" if isinstance(line, str) else line,
        shell=isinstance(line, str),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # those of this process: to the last bit
        preexec_fn=as_in_the_foreground,
    )


def as_in_the_foreground() -> None:
    """Gives a process SIGINT as a terminal's foreground process has it: in the background a shell ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(process: subprocess.Popen[str], number: signal.Signals, seconds: float) -> str | None:
    """Signals the process some seconds after its first step; returns its output, or None if it had ended already."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("train "):
            break
    time.sleep(seconds)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, number)  # as a terminal and `timeout` do: to all processes of the group
    lines += process.stdout.readlines()
    output = "".join(lines)
    assert process.wait(timeout=120) == STATUS[number], output
    assert "Traceback" not in output
    deadline = time.monotonic() + 10  # for the system to collect what has ended
    while (left := subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout) != "":
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    return output


def arguments(dataset: str, workers: int, run: Path) -> list[str]:
    return [*SIX_EPOCHS, "--data", dataset, "--workers", str(workers), "--run-dir", str(run)]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.long)])
def test_a_run_that_is_interrupted_at_random_moments_ends_as_an_undisturbed_one(
    tmp_path: Path, digits_dataset: str, undisturbed: Path, workers: int
) -> None:
    whole = tmp_path / "whole" if workers else undisturbed
    if workers:
        assert begin(command("cifar10", *arguments(digits_dataset, workers, whole)), tmp_path).wait(timeout=300) == 0
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if the test fails
    moments, run = random.Random(seed), tmp_path / "interrupted"
    line: str | list[str] = command("cifar10", *arguments(digits_dataset, workers, run))
    for number in (signal.SIGINT, signal.SIGTERM):
        output = interrupt(begin(line, tmp_path), number, moments.uniform(0, 2.5))
        if output is None:
            break
        line = output.splitlines()[-1]
        assert line.endswith(f"--run-dir {run}")
        reported = max(int(count.replace(",", "")) for count in re.findall(r"^train +([\d,]+)/", output, re.MULTILINE))
        if not (run / "result.json").exists():
            assert json.loads((run / "latest.json").read_text())["step"] >= reported, output
    last = begin(line, tmp_path)
    assert last.wait(timeout=300) == 0
    for name in ("model.safetensors",):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    ends = [json.loads((folder / "result.json").read_text()) for folder in (run, whole)]
    assert ends[0]["evaluations"] == ends[1]["evaluations"]
    assert ends[0]["val"] == ends[1]["val"]


# After a second, on a machine with much else to do, one of 90 runs ended by SIGABRT; the cause isn't known.
@pytest.mark.parametrize(
    "seconds", [pytest.param(0.3, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.long)]
)
def test_ctrl_c_while_a_program_starts_is_one_line(tmp_path: Path, digits_dataset: str, seconds: float) -> None:
    process = begin(command("cifar10", *arguments(digits_dataset, 2, tmp_path / "run")), tmp_path)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # impatient
    output = process.communicate(timeout=60)[0]
    assert process.returncode in (130, -signal.SIGINT), output  # the latter: before Python itself had started
    assert "Traceback" not in output
    assert not list(Path("/tmp").glob(f"ray-{process.pid}-*"))


PROGRAM = """
import os, sys
from jobs.terminal import command

def main(args):
    if args == "in the job":
        os.kill(os.getpid(), {number})
    if args == "by Ray":
        sys.exit(15)

def process():
    if {place!r} == "before the job":
        os.kill(os.getpid(), {number})
    status = command.call(main, {place!r})
    if {place!r} == "after the job":
        os.kill(os.getpid(), {number})
    return status

command.run_process(process)
"""


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *(("before the job", number) for number in STATUS),
        ("in the job", signal.SIGTERM),
        ("by Ray", signal.SIGTERM),
        ("after the job", signal.SIGTERM),
    ],
)
def test_a_signal_is_told_in_one_line_wherever_it_comes(place: str, number: signal.Signals) -> None:
    program = [sys.executable, "-c", PROGRAM.format(place=place, number=int(number))]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, preexec_fn=as_in_the_foreground)
    assert (ended.returncode, ended.stdout, ended.stderr) == (STATUS[number], "interrupted\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_a_signal_at_any_moment_of_the_imports_is_one_line(tmp_path: Path, number: signal.Signals) -> None:
    """From 0.3 s on: a signal while Python itself starts can't be caught by a program."""
    line = command("cifar10", "--recipe", "digits", "--data", "nothere", "--run-dir", "run")
    for moment in range(3):
        process = begin(line, tmp_path)
        time.sleep(0.3 + moment * 0.6)
        os.killpg(process.pid, number)
        time.sleep(0.1 + moment * 0.4)
        if process.poll() is None:
            os.killpg(process.pid, number)
        output = process.communicate(timeout=60)[0]
        assert process.returncode in (STATUS[number], 2), output  # 2: it had ended, for the data don't exist
        assert "Traceback" not in output
        assert output.count("interrupted") == (process.returncode != 2)


RAY_STARTS = """
import pyarrow as pa
from jobs.terminal import command
from pipeline.cluster.session import ray_session

def main(args):
    pa.table({"a": list(range(100_000))}).sort_by("a")  # threads of pyarrow
    with command.Display(), ray_session():
        print("Ray has started")

command.run_process(lambda: command.call(main, None))
"""


def has_handler(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of a signal, by what the system says."""
    with suppress(FileNotFoundError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(re.search(r"SigCgt:\s*([0-9a-f]+)", status).group(1), 16) >> (number - 1) & 1)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_sigterm_while_rays_core_starts_ends_as_ever(tmp_path: Path) -> None:
    """Ray's core takes SIGTERM, as it does SIGILL, to print a stack trace and end the process with SIGABRT."""
    process = begin([sys.executable, "-c", RAY_STARTS], tmp_path)
    while process.poll() is None and not has_handler(process.pid, signal.SIGILL):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    assert output.endswith("interrupted\n")
    assert "SIGTERM received" not in output
    assert not list(Path("/tmp").glob(f"ray-{process.pid}-*"))
