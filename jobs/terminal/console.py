"""The console of all commands: progress of a stage in one line, log records, and tables."""

import logging
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from jobs.terminal import early
from pipeline.core.interrupts import delay_sigterm
from pipeline.core.progress import ACTIVITY, MESSAGE, Bytes, begin, silent

# Lines are never wrapped: people copy paths from them, and search logs. Users' names may hold brackets and colons, so
# nothing is markup or an emoji.
_WIDTH = None if sys.stdout.isatty() else 200
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=_WIDTH)
_SECONDS_BETWEEN_LINES = 10.0
_WINDOW_SECONDS = 60.0  # the rate is that of the last minute
_BAR_WIDTHS = (8, 16, 24)  # up to 80 columns, up to 110, beyond
_SPINNER = Spinner("dots")


class ToConsole(logging.Handler):
    """Prints the log records of the package, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        console.print(self.format(record))


@dataclass
class Stage:
    """The newest report of a stage, and the reports of the last minute."""

    name: str
    done: int = 0
    total: int = 0
    remark: str = ""
    begun: float = field(default_factory=time.monotonic)
    reports: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, done) of each report."""

    def report(self, done: int, total: int, remark: str) -> None:
        """Takes a report, with the arguments of `Progress`."""
        now = time.monotonic()
        if self.reports and done < self.reports[-1][1]:  # it begins again: evaluation after each epoch
            self.reports.clear()
        self.reports.append((now, done))
        while len(self.reports) > 2 and now - self.reports[0][0] > _WINDOW_SECONDS:
            self.reports.popleft()
        self.done, self.total, self.remark = done, total, remark

    def counts(self) -> str:
        """Returns what is done of the whole: "350/1,200", "12.3/170.5 MB"; without a known whole, what is done."""
        if not isinstance(self.done, Bytes) and not isinstance(self.total, Bytes):
            return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        done = f"{self.done / 1e6:,.1f}"
        return f"{done}/{self.total / 1e6:,.1f} MB" if self.total else f"{done} MB"

    def rate(self) -> float:
        """Returns units done in a second, over the last minute; 0 before there are two reports."""
        if len(self.reports) < 2 or self.reports[-1][0] - self.reports[0][0] < 0.2:
            return 0.0
        (first, before), (last, now) = self.reports[0], self.reports[-1]
        return (now - before) / (last - first)

    def pace(self) -> str:
        """Returns the time that is left and the rate, as far as they are known; a remark with a rate replaces ours.

        A whole of one unit has no rate.
        """
        rate, words = self.rate(), []
        if rate and self.total > self.done:
            words.append(f"{clock((self.total - self.done) / rate)} left")
        if rate and "/s" not in self.remark and self.total != 1:
            is_bytes = isinstance(self.done, Bytes) or isinstance(self.total, Bytes)
            words.append(f"{rate / 1e6:,.1f} MB/s" if is_bytes else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        return "  ".join(words)


def clock(seconds: float) -> str:
    """Returns a duration as M:SS, or H:MM:SS from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """Shows progress: one changing line on a terminal, below what is printed; elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._shown = Stage(ACTIVITY, remark="starting")
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._line)
        self._last_line = (time.monotonic(), "")

    def __enter__(self) -> "Display":
        early.end_of_start()
        if console.is_terminal:
            with delay_sigterm():  # the thread that draws leaves it to the main thread
                self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self._live.stop()

    def __reduce__(self) -> Any:
        return _no_display, ()  # Ray Tune pickles what it is given; a screen is this process's

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        """A `pipeline.core.progress.Progress`."""
        if not done and not total and stage != ACTIVITY:
            self._print(remark if stage == MESSAGE else f"{stage:<10} {remark}")
            return
        if stage == ACTIVITY:
            shown = Stage(ACTIVITY, remark=remark)
        else:
            shown = self._stages.setdefault(stage, Stage(stage))
            shown.report(done, total, remark)
        new, self._shown = self._shown.name != shown.name, shown
        if not console.is_terminal:
            self._print_line(shown, new)

    def _print(self, line: str) -> None:
        console.print(line.rstrip())

    def _print_line(self, stage: Stage, new: bool) -> None:
        words = [f"{stage.name:<10} {stage.counts()}", stage.pace(), stage.remark]
        line = stage.remark if stage.name == ACTIVITY else "  ".join(word for word in words if word)
        last, last_line = self._last_line
        ended = stage.total and stage.done == stage.total
        due = new or ended or stage.name == ACTIVITY or time.monotonic() - last > _SECONDS_BETWEEN_LINES
        if line != last_line and due:
            self._print(line)
            self._last_line = (time.monotonic(), line)

    def _line(self) -> Text:
        """Returns the changing line, no wider than the terminal."""
        stage, width = self._shown, console.width
        spinner = _SPINNER.render(time.monotonic())
        wheel = spinner.plain if isinstance(spinner, Text) else "*"
        if stage.name == ACTIVITY:
            text = f"{wheel} {stage.remark}  {clock(time.monotonic() - stage.begun)}"
        else:
            bar_width = _BAR_WIDTHS[(width > 80) + (width > 110)]
            filled = round(bar_width * min(1.0, stage.done / stage.total)) if stage.total else 0
            bar = "━" * filled + "╌" * (bar_width - filled)
            words = [f"{stage.name:<8} {bar} {stage.counts()}", stage.pace(), stage.remark]
            text = f"{wheel} " + "  ".join(word for word in words if word)
        line = Text(text, no_wrap=True, overflow="ellipsis", end="")
        line.truncate(max(8, width - 1), overflow="ellipsis")
        return line


@contextmanager
def loading(what: str = "PyTorch") -> Iterator[None]:
    """Shows that libraries are loaded while the block imports them: a second or two, or ten on a busy machine."""
    with Display() as display:
        begin(display, f"loading {what}")
        yield


def _no_display() -> Callable[..., None]:
    return silent


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Prints names and values. On a terminal texts are folded between words; a path is one line, as it is copied."""
    indent = max((cell_len(name) for name, _ in rows), default=0) + 2
    console.print(Text(title, style="bold"))
    for name, value in rows:
        lines = _folded(value, console.width - indent) if console.is_terminal else [value]
        first = Text(name + " " * (indent - cell_len(name)), style="dim")
        first.append(lines[0], style="not dim")
        first.rstrip()  # logs keep blanks
        console.print(first)
        for line in lines[1:]:
            console.print(Text(" " * indent + line))


def _folded(text: str, width: int) -> list[str]:
    if cell_len(text) <= width or len(text.split()) < 2:
        return [text]
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)
