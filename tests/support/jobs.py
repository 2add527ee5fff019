"""Run the jobs as a user does: real command lines in real processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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


def one_line_error(finished: subprocess.CompletedProcess[str]) -> str:
    """Returns the one line that a job printed on standard error. Fails unless it ended with status 2."""
    assert finished.returncode == 2, finished.stdout + finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
