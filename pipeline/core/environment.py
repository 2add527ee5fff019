"""Versions of Python and packages, and the commit of the source: results depend on them."""

import importlib.metadata
import platform
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
