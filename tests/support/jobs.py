"""Run the jobs as a user does: real command lines, in processes of their own or, in less time, in this one."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.terminal import command as job_command

ROOT = Path(__file__).parents[2]
SIX_EPOCHS = ("--recipe", "digits", "--epochs", "6", "--trace-rows")
"""Flags of the run `undisturbed` (tests/jobs/conftest.py), and of those that are compared with it."""


def command(job: str, *arguments: str) -> list[str]:
    """Returns the command line of a job of `jobs/`."""
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]


def run_job(job: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a job to its end in the folder `cwd`, with a cache of its own and without a network."""
    # A proxy at a port where nothing listens: no job of a test reaches the network.
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "https_proxy": "http://127.0.0.1:9"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        command(job, *arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def call_job(job: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Returns what `run_job` does, from a call in this process: seconds of start-up less, and Ray is shared."""
    module = importlib.import_module(f"jobs.{job}")
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setenv("XDG_CACHE_HOME", str(cwd / "cache"))
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            parsed = job_command.parse(module.Args, module.__doc__ or "", f"jobs/{job}.py", arguments)
            status = job_command.call(module.main, parsed, getattr(module, "RESUME_HINT", ""))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return subprocess.CompletedProcess([job, *arguments], status, out.getvalue(), err.getvalue())


def one_line_error(finished: subprocess.CompletedProcess[str]) -> str:
    """Returns the one line that a job printed on standard error. Fails unless it ended with status 2."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
