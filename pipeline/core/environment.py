"""The environment of this process: variables, versions of packages, and the commit of the source."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def set_variables(values: Mapping[str, str], also_restored: tuple[str, ...] = ()) -> Iterator[None]:
    """Sets environment variables for the block, and restores them. also_restored: names that the block may set."""
    before = {name: os.environ.get(name) for name in (*values, *also_restored)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
