"""The packages that only the tests need: are they installed? If not, install them and start pytest again."""

import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

GROUP = "tests"
ROOT = Path(__file__).parents[2]
_RESTARTED = "IMAGE_PIPELINE_TESTS_RESTARTED"


def missing_packages() -> list[str]:
    """Returns the names of the packages of the group `tests` in pyproject.toml that aren't installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [Requirement(line) for line in project["dependency-groups"][GROUP] if isinstance(line, str)]
    extras = {extra for need in needs if need.name == project["project"]["name"] for extra in need.extras}
    needs += [
        Requirement(line) for extra in sorted(extras) for line in project["project"]["optional-dependencies"][extra]
    ]
    return [name for name in dict.fromkeys(need.name for need in needs) if not _is_installed(name)]


def restart_with_them(plugins: pytest.PytestPluginManager, missing: list[str]) -> None:
    """Replaces this process by `uv run --group tests pytest` with the same arguments.

    Returns in a process that was restarted so and still misses packages: their tests say what they miss. Ends pytest
    with the command where it was not started by `uv run`: then this environment isn't uv's to change.
    """
    if os.environ.get(_RESTARTED) or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    _end_capturing(plugins)
    uv = os.environ.get("UV")  # `uv run` sets it
    if not uv:
        print(
            f"the tests need {', '.join(missing)}, not installed here; install them and run the tests by: "
            f"uv run --group {GROUP} pytest",
            file=sys.stderr,
            flush=True,
        )
        os._exit(int(pytest.ExitCode.USAGE_ERROR))  # an exception here is shown with pytest's whole stack
    print(f"installing what only the tests need: {', '.join(missing)}", file=sys.stderr, flush=True)
    os.environ[_RESTARTED] = "1"
    os.execv(uv, ["uv", "run", "--project", str(ROOT), "--group", GROUP, "pytest", *sys.argv[1:]])


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _end_capturing(plugins: pytest.PytestPluginManager) -> None:
    """Gives standard output back: pytest has put files of its own in its place, which the new process would get."""
    manager: Any = plugins.getplugin("capturemanager")
    if manager:
        manager.stop_global_capturing()
