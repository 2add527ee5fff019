"""Runs the sections, each in a process of its own, and keeps their results in one file of JSON."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.bench.gpu.child import MODULES, Settings, command
from pipeline.storage import files

_WEIGHTS = {
    "ceilings": 1, "correctness": 4, "resnet50": 9, "cifar10": 10, "decoder": 2, "checkpoints": 1.5, "stream": 7,
}  # fmt: skip
"""Shares of the time."""
_GRACE_SECONDS = 15.0
"""A section that hasn't ended by itself so long after its time is killed."""
_ROOT = Path(__file__).parents[3]


class Proof:
    """The results of all sections, and the file that is written anew after each."""

    def __init__(self, out: str, settings: Settings, seconds: float) -> None:
        self._out, self._settings = files.absolute(out), settings
        self._ends = time.monotonic() + seconds
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
        result = _run_apart(name, seconds, self._settings)
        self.values["sections"][name] = result
        self.write()
        why = result.get("error") or result.get("reason") or ""
        print(f"{name}: {result['status']} after {result['seconds']:.0f} s{': ' + why if why else ''}\n", flush=True)
        return result

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


def _run_apart(name: str, seconds: float, settings: Settings) -> dict[str, Any]:
    """Returns the result of a section that runs in a process of its own; a hanging one is killed with its children."""
    out = os.path.join(settings.folder, f"{name}.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    if settings.small:
        environment["OMP_NUM_THREADS"] = "1"  # tiny tensors: threads cost more than they save
    started = time.monotonic()
    process = subprocess.Popen(command(name, seconds, settings, out), env=environment, start_new_session=True)
    killed = False
    try:
        process.wait(timeout=seconds + _GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        killed = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result: dict[str, Any] = {"status": "running", "seconds": time.monotonic() - started, "results": {}}
    with contextlib.suppress(FileNotFoundError):
        result = json.loads(Path(out).read_text())
    if result["status"] == "running":
        why = f"killed {_GRACE_SECONDS:.0f} s after its time" if killed else f"its process ended: {process.returncode}"
        result |= {"status": "failed", "error": why, "seconds": round(time.monotonic() - started, 2)}
    return result


def chosen(names: tuple[str, ...]) -> list[str]:
    """Returns the sections to run, in their order; all of them without names."""
    return [name for name in MODULES if not names or name in names]
