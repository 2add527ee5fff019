"""The shape of the source: rooms import downwards only, and stay small enough to be read."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "core", "storage", "cluster", "reporting", "dataset", "config", "ingestion", "versions", "loader", "models",
    "evaluation", "training", "retraining",
)  # fmt: skip
SOURCES = sorted(path for folder in ("pipeline", "jobs", "infra") for path in (ROOT / folder).rglob("*.py"))
FOLDERS = sorted(
    path
    for name in ("pipeline", "jobs", "infra", "examples", "tests")
    for path in [ROOT / name, *(ROOT / name).rglob("*")]
    if path.is_dir() and path.name != "__pycache__"
)
MOST_MODULES, MOST_LINES, MOST_PARAMETERS = 15, 60, 6
KEYWORDS_OF_USERS = {
    "pipeline/ingestion/api.py: ingest",
    "pipeline/ingestion/api.py: preview_ingest",
    "pipeline/loader/api.py: __init__",
    "pipeline/training/automatic/settings.py: automatic_recipe",
}
"""Functions with more parameters, nearly all of which have defaults and are left alone."""


def imported(path: Path) -> Iterator[str]:
    """Yields the full name of each module, or name of a module, that a file imports at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(room: str, names: Iterator[str]) -> list[str]:
    """Returns the imports of `names` that a module of `room` may not have."""
    later = ROOMS[ROOMS.index(room) + 1 :]
    return [
        name
        for name in names
        if name.split(".")[0] == "jobs" or name.split(".")[:2] in [["pipeline", r] for r in later]
    ]


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    found = {path.name: upward(room, imported(path)) for path in (ROOT / "pipeline" / room).rglob("*.py")}
    assert not {name: names for name, names in found.items() if names}


def test_an_upward_import_is_found() -> None:
    assert upward(
        "loader", iter(["pipeline.models.factory", "pipeline.core.errors", "jobs.terminal.command", "torch.nn"])
    ) == [
        "pipeline.models.factory",
        "jobs.terminal.command",
    ]


def test_jobs_and_infra_do_not_import_each_other() -> None:
    for mine, other in (("jobs", "infra"), ("infra", "jobs")):
        for path in (ROOT / mine).rglob("*.py"):
            assert not [name for name in imported(path) if name.split(".")[0] == other], path


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_holds_few_modules(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "conftest.py")]
    assert len(modules) <= MOST_MODULES, f"{folder.name} has {len(modules)} modules"


def test_functions_fit_on_a_screen_and_take_few_parameters() -> None:
    """A docstring that describes the parameters of users doesn't count."""
    too_long, too_many = [], []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, given = f"{path.relative_to(ROOT)}: {node.name}", node.args
                parameters = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                documented = node.body[0] if name in KEYWORDS_OF_USERS else None
                lines = node.end_lineno - node.lineno + 1
                lines -= documented.end_lineno - documented.lineno + 1 if documented else 0
                too_long += [f"{name} has {lines} lines"] if lines > MOST_LINES else []
                many = len([each for each in parameters if each not in ("self", "cls")]) > MOST_PARAMETERS
                too_many += [name] if many else []
    assert too_long == []
    assert set(too_many) == KEYWORDS_OF_USERS


@pytest.mark.parametrize(
    "folder", [each for each in FOLDERS if each.relative_to(ROOT).parts[0] in ("pipeline", "jobs")]
)
def test_a_package_says_what_it_is_for(folder: Path) -> None:
    if list(folder.glob("*.py")):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("name", ["pipeline", *(f"pipeline.{room}" for room in ROOMS)])
def test_every_name_of_a_door_is_there(name: str) -> None:
    package = importlib.import_module(name)
    for each in getattr(package, "__all__", ()):
        assert getattr(package, each).__module__ != name
        assert not (Path(package.__file__ or "").parent / f"{each}.py").exists(), f"{each} is a module, too"


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        from_tests = [name for name in imported(path) if name.startswith("tests.")]
        assert not [name for name in from_tests if not name.startswith("tests.support.")], path


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    needs: dict[str, set[str]] = {}
    for path in SOURCES:
        if path.name != "__init__.py":  # a door imports lazily
            names = set(imported(path))
            found = (names | {name.rpartition(".")[0] for name in names}) & modules
            needs[".".join(path.relative_to(ROOT).with_suffix("").parts)] = found
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs
