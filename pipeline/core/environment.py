"""Versions of Python and packages, the commit of the source, and the machine: results depend on them."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "scikit-learn")


def versions() -> dict[str, str]:
    """Returns {name: version} of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def git_commit() -> str:
    """Returns the commit of the source, with "+changes" if files differ from it, or "unknown" outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package; git would find a checkout further up, of something else
        return "unknown"
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def machine() -> str:
    """Returns this machine in words: `4 cores of AMD EPYC 7763, 16 GiB of memory, 1 x NVIDIA H100 PCIe`.

    The GPUs are those that the driver names, whether or not torch can use them.
    """
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    words = f"{cores} core{'' if cores == 1 else 's'} of {_cpu_model()}, {memory:.0f} GiB of memory"
    gpus = [_first_match(r"^Model:\s*(.+)$", file) for file in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    return ", ".join([words, *(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus) if name)])


def _cpu_model() -> str:
    return _first_match(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")) or platform.processor() or platform.machine()


def _first_match(pattern: str, file: Path) -> str | None:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None
