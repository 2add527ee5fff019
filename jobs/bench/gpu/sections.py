"""Runs the sections, each in a process of its own, and keeps their results in one file of JSON."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.bench.gpu import targets
from jobs.bench.gpu.child import MODULES, ON_REQUEST, Settings, command
from pipeline.storage import files

_WEIGHTS = {
    "ceilings": 5, "correctness": 35, "resnet50": 180, "cifar10": 90, "decoder": 25, "checkpoints": 20, "stream": 95,
    "records": 300,
}  # fmt: skip
"""Shares of the time: seconds of 450, on one H100. What a section doesn't use is left to those after it."""
_GRACE_SECONDS = 15.0
"""A section that hasn't ended by itself so long after its time is killed."""
_KEEP_SECONDS = 2.0
_ROOT = Path(__file__).parents[3]


class Proof:
    """The results of all sections, and the file that is written anew after each."""

    def __init__(self, out: str, settings: Settings, seconds: float) -> None:
        self._out, self._settings = files.absolute(out), settings
        self._ends = time.monotonic() + seconds
        self._judged = settings.device == "cuda" and not settings.small
        self.values: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(settings.device),
            "settings": asdict(settings),
            "data": {
                "cifar": settings.cifar or "generated pictures",
                "photos": settings.photos or "generated pictures",
            },
            "sections": {},
            "table": [],
        }
        self.write()

    def run(self, name: str, later: list[str]) -> dict[str, Any]:
        """Runs a section and returns its result. later: sections that share the time that is left."""
        left = max(0.0, self._ends - time.monotonic())
        seconds = left * _WEIGHTS[name] / sum(_WEIGHTS[each] for each in (name, *later))
        print(f"{name}: {seconds:.0f} s at most", flush=True)
        result = _run_apart(name, seconds, self._settings, lambda result: self._keep(name, result))
        self._keep(name, result)
        why = result.get("error") or result.get("reason") or ""
        print(f"{name}: {result['status']} after {result['seconds']:.0f} s{': ' + why if why else ''}\n", flush=True)
        return result

    def _keep(self, name: str, result: dict[str, Any]) -> None:
        self.values["sections"][name] = result
        self.values["table"] = targets.table(self.values["sections"], self._judged)
        self.write()

    def write(self) -> None:
        """Writes the file."""
        files.write_json(self._out, self.values, pretty=True)


def machine(device: str) -> dict[str, Any]:
    """Returns what the figures depend on: device, versions, CPUs, commit."""
    import torch

    from pipeline.cluster.ray_tasks import usable_cpus
    from pipeline.core.environment import git_commit

    values: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
        "cpus": usable_cpus(),
    }
    carried = _ROOT / "COMMIT"  # beside code that was packed without its repository
    return {**values, "commit": carried.read_text().strip() if carried.exists() else git_commit()}


def _run_apart(name: str, seconds: float, settings: Settings, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Returns the result of a section that runs in a process of its own; a hanging one is killed with its children.

    keep: called with what it has found so far, again and again, so that an end of this process loses little.
    """
    out = os.path.join(settings.folder, f"{name}.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    if settings.small:
        environment["OMP_NUM_THREADS"] = "1"  # tiny tensors: threads cost more than they save
    started = time.monotonic()
    process = subprocess.Popen(command(name, seconds, settings, out), env=environment, start_new_session=True)
    ended = False
    try:
        while not ended and time.monotonic() < started + seconds + _GRACE_SECONDS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_KEEP_SECONDS)
                ended = True
            if not ended and (found := _result(out)):
                keep(found)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = _result(out) or {"status": "running", "results": {}}
    if result["status"] == "running":
        why = f"its process ended: {process.returncode}" if ended else f"killed {_GRACE_SECONDS:.0f} s after its time"
        result |= {"status": "failed", "error": why, "seconds": round(time.monotonic() - started, 2)}
    return result


def _result(out: str) -> dict[str, Any]:
    """Returns what a section has written; empty if it has written nothing."""
    with contextlib.suppress(FileNotFoundError):
        values: dict[str, Any] = json.loads(Path(out).read_text())
        return values
    return {}


def chosen(names: tuple[str, ...]) -> list[str]:
    """Returns the sections to run, in their order; without names all but those that run on request."""
    return [name for name in MODULES if name in (names or set(MODULES) - set(ON_REQUEST))]
