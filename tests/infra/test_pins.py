import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import dev_packages

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [Requirement(line) for line in PROJECT["tool"]["uv"]["constraint-dependencies"]]


def test_every_installed_package_has_the_version_written_down() -> None:
    pinned = {line.name: str(line.specifier) for line in CONSTRAINTS if not line.marker or line.marker.evaluate()}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        if name in pinned:
            assert f"=={package.version}" == pinned[name], name


def test_the_whole_set_is_pinned() -> None:
    """What the direct dependencies need, and what that needs, is among the constraints."""
    names = {line.name for line in CONSTRAINTS}
    for name in sorted(names):
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert re.sub(r"[-_.]+", "-", need.name).lower() in names, f"{name} needs {need.name}"


GROUPS = {
    "project": PROJECT["project"]["dependencies"],
    **PROJECT["project"]["optional-dependencies"],
    **PROJECT["dependency-groups"],
}


@pytest.mark.parametrize("group", GROUPS)
def test_direct_dependencies_are_exact(group: str) -> None:
    lines = [line for line in GROUPS[group] if isinstance(line, str) and not line.startswith("image-pipeline[")]
    assert lines
    assert all(re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\d.]+", line) for line in lines)


def test_no_address_is_recorded() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "://" not in text


# --- what the first command installs ------------------------------------------------------------------------------


def _normal(name: str) -> str:
    """Returns the name of a package as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_a_command_imports_at_its_start_is_among_the_projects_own_dependencies() -> None:
    """Else `uv run jobs/cifar10.py` works here, where the tests' packages are installed, and nowhere else."""
    own = {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    own |= {need.name for name in own for need in _needs(name)}  # scikit-learn's scipy
    own = {_normal(name) for name in own}
    packages = importlib.metadata.packages_distributions()
    checked = set()
    for file in (path for room in ("pipeline", "jobs") for path in (ROOT / room).rglob("*.py")):
        if "bench" in file.parts:
            continue
        for name in _imported_with_the_module(ast.parse(file.read_text())):
            if name in sys.stdlib_module_names or name in ("pipeline", "jobs", "infra"):
                continue
            owners = {_normal(owner) for owner in packages[name]}
            assert owners & own, f"{file}: {name}"
            checked.add(name)
    assert {"numpy", "torch", "tyro"} <= checked


def _needs(name: str) -> list[Requirement]:
    return [need for need in map(Requirement, importlib.metadata.requires(name) or []) if need.marker is None]


def _imported_with_the_module(module: ast.Module) -> set[str]:
    names = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            names |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_uv_run_installs_no_group_but_pytest_itself() -> None:
    assert PROJECT["tool"]["uv"]["default-groups"] == ["pytest"]
    assert [Requirement(line).name for line in PROJECT["dependency-groups"]["pytest"]] == ["pytest"]


class StartedError(Exception):
    """Stands for the process that os.execv would start."""


def test_pytest_without_the_tests_packages_starts_itself_again_with_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        calls.append([program, *command])
        raise StartedError

    plugins = pytest.PytestPluginManager()
    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("sys.argv", ["pytest", "-n", "2", "tests/core"])
    monkeypatch.setenv("UV", "/bin/uv")
    monkeypatch.setenv(dev_packages._RESTARTED, "")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    with pytest.raises(StartedError):
        dev_packages.restart_with_them(plugins, ["hypothesis"])
    command = "/bin/uv uv run --project ROOT --group tests pytest -n 2 tests/core".replace("ROOT", str(ROOT))
    assert calls == [command.split()]
    dev_packages.restart_with_them(plugins, ["hypothesis"])  # the restarted one: it goes on, and doesn't start again
    assert len(calls) == 1


def test_a_package_that_is_not_installed_is_found_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev_packages.missing_packages() == []

    def version(name: str) -> str:
        if name in ("duckdb", "timm"):  # timm is of an extra
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert dev_packages.missing_packages() == ["duckdb", "timm"]
