"""`WORKSPACE/index.html`: all retraining runs of a workspace on one page, with the champion's accuracy over time."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.core.shares import wilson_interval
from pipeline.reporting.charts import BLUE, ORANGE, chart_style, new_axes, render_page, svg_data_uri
from pipeline.retraining import registry
from pipeline.retraining.overview.nights import Night, accuracy_of
from pipeline.retraining.overview.overview import Overview
from pipeline.retraining.overview.times import planned_text, taken_text
from pipeline.storage import files

PAGE_NAME = "index.html"
_SIGNS = {"+": "added", "-": "removed", "~": "changed"}
_SHOWN = 60  # runs that are open in the table; older ones are folded


@dataclass(frozen=True)
class Line:
    """A line of the table: a run, or a move of the champion by other means, such as a rollback."""

    time: float
    night: Night | None = None
    move: registry.Move | None = None


def write_page(overview: Overview) -> str:
    """Writes the page of a workspace and returns its URI."""
    uri = files.join(overview.workspace, PAGE_NAME)
    files.write_bytes(uri, render_overview(overview).encode())
    return uri


def render_overview(overview: Overview) -> str:
    """Returns the page as HTML."""
    nights, moves = overview.nights, overview.moves
    by_hand = [Line(each.time, move=each) for each in moves if each.mark[0] != "night"]
    lines = sorted([*by_hand, *(Line(each.finished, each) for each in nights)], key=lambda each: -each.time)
    return render_page(
        "nights.html", overview.workspace,
        title=files.basename(overview.workspace), overview=overview, nights=nights, status=overview.status,
        shown=lines[:_SHOWN], folded=lines[_SHOWN:], champion=moves[-1] if moves else None,
        chart=_champion_chart(nights, moves), when=_when, data_text=data_text, planned=planned_text, taken=taken_text,
        link=lambda name: files.join(overview.workspace, name), counts=_counts(nights),
        cost=sum(each.cost or 0 for each in nights),
    )  # fmt: skip


def _counts(nights: Sequence[Night]) -> dict[str, int]:
    """Returns the number of runs of each status that there is."""
    found = Counter(each.status for each in nights)
    return {name: found[name] for name in ("promoted", "candidate", "kept", "stopped") if found[name]}


def _when(seconds: float) -> str:
    """Returns a time in UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "unknown"


def data_text(data: dict[str, Any] | None) -> str:
    """Returns in words what has changed in the data: `train +20 -3, val +2; new class: owl`; "" if it isn't known."""
    if not data:
        return ""
    rows = ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
    if "since" not in data:
        return rows
    parts = []
    for split in data["rows"]:
        counts = [(sign, data[name].get(split, 0)) for sign, name in _SIGNS.items()]
        text = " ".join(f"{sign}{count:,}" for sign, count in counts if count)
        parts += [f"{split} {text}"] if text else []
    said = [", ".join(parts) or "the same rows"]
    for name, words in (("classes_added", "new"), ("classes_removed", "gone")):
        said += [f"{words}: {_some(data[name])}"] if data[name] else []
    return "; ".join(said)


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def champion_points(nights: Sequence[Night], moves: Sequence[registry.Move]) -> list[tuple[float, int, int, bool]]:
    """Returns (time, correct, rows, whether it is new) of the champion after each run, and after each move without one.

    A move by a person or a review, such as a return, has the accuracy of its version in the newest run before it.
    """
    points = [(each.finished, *each.champion, each.status == "promoted") for each in nights if each.champion]
    for move in (each for each in moves if each.mark[0] != "night"):
        found = accuracy_of([each for each in nights if each.finished <= move.time], move.version)
        points += [(move.time, *found, True)] if found else []
    return sorted(each for each in points if each[0])


@chart_style()
def _champion_chart(nights: Sequence[Night], moves: Sequence[registry.Move]) -> tuple[str, str] | None:
    """Returns (chart, caption) of the champion's accuracy over time; None before two runs have looked at one."""
    points = champion_points(nights, moves)
    if len(points) < 2:
        return None
    times: list[Any] = [datetime.fromtimestamp(time, UTC) for time, *_ in points]
    shares = [100 * correct / rows for _, correct, rows, _ in points]
    low, high = zip(*(wilson_interval(correct, rows) for _, correct, rows, _ in points), strict=True)
    figure, plot = new_axes(7.0, 2.8)
    plot.fill_between(times, [100 * each for each in low], [100 * each for each in high], color=BLUE, alpha=0.2, lw=0)
    plot.plot(times, shares, color=BLUE, linewidth=1.5)
    new = [place for place, (*_, is_new) in enumerate(points) if is_new]
    plot.plot(
        [times[i] for i in new], [shares[i] for i in new], "o", color=ORANGE, markersize=4, label="a new champion"
    )
    plot.set(ylabel="top-1, %")
    plot.legend(frameon=False, loc="lower right")
    figure.autofmt_xdate(rotation=30)
    caption = "Top-1 of the champion after each run, on its validation images that the models weren't trained on"
    return svg_data_uri(figure), f"{caption}; shaded: Wilson's interval of 95 % confidence"
