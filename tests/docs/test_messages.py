"""The messages that the pages quote are those that the programs print."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "clusters" / "runbook.md"
PAGES = [*sorted(ROOT.glob("docs/guides/*.md")), ROOT / "docs" / "faults.md", RUNBOOK]
# Messages of Ray, Gloo and storages, and stages of the progress line.
OTHERS = (
    "Missing authentication token", "Invalid authentication token", "Gloo connectFullMesh failed", "queue ", "storage ",
    "decode ", "nodes ", "error sending request", "AccessDenied", "WebSocket connection closed unexpectedly",
    "failed to get job supervisor",
)  # fmt: skip


def source() -> str:
    """Returns all of the source, with strings over several lines joined."""
    text = "".join(path.read_text() for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))
    return " ".join(re.sub(r'"\s*\n\s*f?"', "", text).split())


def quoted(page: Path) -> list[str]:
    """Returns the quotes in the message column of a page's tables, whichever name it has; single words are left out."""
    found, column = [], None
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        names = [name for name in ("message", "what you see", "it prints") if name in cells]
        if names or not cells:
            column = cells.index(names[0]) if names else None
        elif column is not None and len(cells) > column:
            found += [quote for quote in re.findall(r"`([^`]+)`", cells[column]) if " " in quote]
    return found


def unknown_parts(quote: str, text: str) -> list[str]:
    """Returns the parts of a quote, cut at numbers and dots, that are neither in `text` nor of others' messages."""
    if quote.startswith(OTHERS):
        return []
    parts = [part.strip(" ,:'") for part in re.split(r"\.\.\.|\b[\dN]+\b|%", quote)]
    return [part for part in parts if len(part) > 6 and part not in text and not any(word in part for word in OTHERS)]


def test_a_message_that_nobody_prints_is_found() -> None:
    assert unknown_parts("the moon is 3 % full", source()) == ["the moon is"]
    assert not unknown_parts(
        "... another process is writing there now", "f'{uri}: another process is writing there now'"
    )


def test_the_runbook_has_all_its_rows() -> None:
    rows = [line for line in RUNBOOK.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 25
    assert len(quoted(RUNBOOK)) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_quotes_is_what_the_programs_print(page: Path) -> None:
    text = source()
    assert not {quote: parts for quote in quoted(page) if (parts := unknown_parts(quote, text))}
