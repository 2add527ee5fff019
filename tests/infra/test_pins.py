import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
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


@pytest.mark.parametrize("group", ["project", "evaluation", "dev"])
def test_direct_dependencies_are_exact(group: str) -> None:
    lines = {
        "project": PROJECT["project"]["dependencies"],
        "evaluation": PROJECT["project"]["optional-dependencies"]["evaluation"],
        "dev": [line for line in PROJECT["dependency-groups"]["dev"] if line != "image-pipeline[evaluation]"],
    }[group]
    assert lines
    assert all(re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\d.]+", line) for line in lines)


def test_no_address_is_recorded() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "://" not in text
