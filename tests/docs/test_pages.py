"""README and docs name files that exist, and links from pages outside the site lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("infra/*.md"), *ROOT.glob("docs/**/*.md")])
    if path.name not in ("CHANGELOG.md", "log.md")  # both tell of files as they were then
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_files_that_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert page.parent.joinpath(link).exists(), link
    for name in re.findall(r"\b((?:infra|jobs|pipeline|tests|examples)/[\w./-]+\.\w+)\b", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_of_a_page_has_rows(page: Path) -> None:
    lines = [*page.read_text().splitlines(), ""]
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line)]
    assert [lines[number - 1] for number in rules if not lines[number + 1].startswith("|")] == []


def test_architecture_has_a_line_for_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for folder in [*(path for path in (ROOT / "pipeline").iterdir() if path.is_dir()), ROOT / "jobs"]:
        name = folder.relative_to(ROOT)
        listed = text.partition(f"<!-- modules {name} -->")[2].partition("<!-- end -->")[0]
        modules = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.name != "__init__.py"}
        assert set(re.findall(r"^\| `([^`]+\.py)` \|", listed, re.MULTILINE)) == modules, name


ROOM_PAGES = [page for page in sorted((ROOT / "docs" / "api").glob("*.md")) if page.stem != "index"]


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda page: page.stem)
def test_a_page_of_the_python_interface_lists_all_names_of_the_door(page: Path) -> None:
    listed = re.search(r"members: \[(.*?)\]", page.read_text(), re.DOTALL)
    names = re.split(r",\s*", listed[1]) if listed else []
    assert sorted(names) == sorted(getattr(importlib.import_module(f"pipeline.{page.stem}"), "__all__", ()))
