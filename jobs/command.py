"""The edge that all jobs share: arguments, errors, Ray, progress, and the last lines on the screen."""

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.core.processes import end_on_sigterm

# Python's cached bytecode halves Ray's start-up; a setting that forbids it is lifted for this process and its own.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.core.errors import PipelineError, UnavailableError
from pipeline.core.progress import silent

Args = TypeVar("Args")
# Lines are never broken: paths are there to be copied, and logs to be searched.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
_LINE_EVERY_SECONDS = 10.0
_RAYS_ADVICE = "Failed to apply UDF transform"  # Ray Data adds it to the text of what a task raises


def run(main: Callable[[Args], None], args_type: type[Args], description: str, again: str = "") -> None:
    """Parses the command line into `args_type` and calls `main`; ends with 2 on a user's error, 1 where a storage stays
    away, 130 on Ctrl-C.

    again: what the same command does after Ctrl-C, for the last line.
    """
    arguments = tyro.cli(args_type, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    end_on_sigterm()
    logging.getLogger("pipeline").addHandler(_ToConsole())
    logging.getLogger("pipeline").setLevel(logging.INFO)
    try:
        main(arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one has nothing left to end
        console.print(f"interrupted; {again}" if again else "interrupted")
        sys.exit(130)
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        print(f"error: {user_message(known)}", file=sys.stderr)
        sys.exit(1 if isinstance(known, UnavailableError) else 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # done: nothing is lost any more


class _ToConsole(logging.Handler):
    """Prints what the package logs, each record a line."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record))


def user_error(error: BaseException) -> Exception | None:
    """Returns the error that one line is enough for, also where it comes back through Ray; None for a defect."""
    rays_own = any(each.__name__ == "RayTaskError" for each in type(error).__mro__)  # it is the inner one's class, too
    if not rays_own and (isinstance(error, PipelineError) or (isinstance(error, OSError) and _storage_message(error))):
        return error
    wrapped: list[Any] = list(getattr(error, "worker_failures", {}).values())  # Ray Train's WorkerGroupError
    wrapped += [getattr(error, name, None) for name in ("cause", "_base_exc", "__cause__")]
    found = (user_error(inner) for inner in wrapped if isinstance(inner, BaseException) and inner is not error)
    return next((inner for inner in found if inner), None)


def user_message(error: BaseException) -> str | None:
    """Returns the one line to print of `user_error`, or None."""
    known = user_error(error)
    if isinstance(known, OSError):
        return _storage_message(known)
    return None if known is None else " ".join(str(known).split(_RAYS_ADVICE)[0].split())


def _storage_message(error: OSError) -> str | None:
    """Returns a line for a storage that refuses or is full; other errors of the system are no one's input."""
    text = " ".join(str(error).split(_RAYS_ADVICE)[0].split())
    if "AWS Error" in text:
        return f"{text[:300]}; check bucket, endpoint and credentials (the AWS_... variables or profile)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: the disk is full; free some space and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}: not allowed; give a folder that you may write to"
    return None


def option(text: str, value: str, default: str = "") -> Any:
    """Returns what tyro shows of a flag: its help, a name for its value, and what holds without it."""
    return tyro.conf.arg(help=text, metavar=value, help_behavior_hint=f"(default: {default})" if default else "")


# --- progress ----------------------------------------------------------------------------------------------------


class Display:
    """Shows progress: bars on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._last_line = (time.monotonic(), "")

    def __enter__(self) -> "Display":
        if console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self._bars.stop()

    def __reduce__(self) -> Any:
        return _no_display, ()  # Ray Tune pickles what it is given; a screen is this process's

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        """A `pipeline.core.progress.Progress`."""
        if not console.is_terminal:
            self._print_line(stage, done, total, remark)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=None, remark="")
        self._bars.update(self._tasks[stage], completed=done, total=total or None, remark=remark)

    def _print_line(self, stage: str, done: int, total: int, remark: str) -> None:
        share = f"{done:,}/{total:,}" if total else ""
        line = f"{stage:<10} {share}  {remark}".rstrip()
        last, last_line = self._last_line
        new_stage = last_line.split(" ")[0] != stage
        ended = total and done == total
        if line != last_line and (new_stage or ended or time.monotonic() - last > _LINE_EVERY_SECONDS):
            console.print(line)
            self._last_line = (time.monotonic(), line)


def _no_display() -> Callable[..., None]:
    return silent


# --- Ray ---------------------------------------------------------------------------------------------------------


# --- the end -----------------------------------------------------------------------------------------------------


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Prints names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
