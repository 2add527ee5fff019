"""The edge that all jobs share: arguments, errors, Ray, progress, and the last lines on the screen."""

import errno
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

# Python's cached bytecode halves Ray's start-up; a setting that forbids it is lifted for this process and its own.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import PipelineError, UnavailableError
from pipeline.parallel import usable_cpus
from pipeline.progress import silent

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
    _end_on_sigterm()
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


def _end_on_sigterm() -> None:
    """So that what was started is ended. Ray sets a handler of its own, whose status says nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


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
        """A `pipeline.progress.Progress`."""
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


class Board:
    """A Ray actor that keeps, for a display elsewhere to read, the last word of a remote stage and all that is said
    once: what has no total.
    """

    def __init__(self) -> None:
        self._last: tuple[str, int, int, str] | None = None
        self._once: list[tuple[str, int, int, str]] = []

    def post(self, stage: str, done: int, total: int, remark: str) -> None:
        """Called by the worker."""
        if total:
            self._last = (stage, done, total, remark)
        else:
            self._once.append((stage, done, total, remark))

    def take(self) -> list[tuple[str, int, int, str]]:
        """Called by the display: what it hasn't shown yet."""
        new, self._once = [*self._once, *([self._last] if self._last else [])], []
        self._last = None
        return new


class RemoteProgress:
    """A `pipeline.progress.Progress` that a worker can call: it posts to a Board and doesn't wait."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        self._board.post.remote(stage, done, total, remark)


@contextmanager
def remote_progress(display: Display) -> Iterator[RemoteProgress]:
    """Shows on `display` what remote workers report to the value it yields. Needs Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            for words in ray.get(board.take.remote()):
                display(*words)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield RemoteProgress(board)
    finally:
        done.set()
        thread.join(timeout=5)


# --- Ray ---------------------------------------------------------------------------------------------------------


@contextmanager
def ray_session(num_workers: int = 0) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in `ray job submit`), else starts Ray here and ends it after.

    A local Ray announces one CPU more than there are workers, at least, so that reading never starves.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        _end_on_sigterm()
        quieten_ray()
        _quieten_ray_data()
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Its own folder, because a session leaves its logs behind; in /tmp, because the path of a socket is at most
    # 107 bytes long and temporary folders have long names on some machines.
    _remove_stale_sessions()
    folder = tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir="/tmp")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder  # for what Ray's processes leave in temporary folders when they are ended
    try:
        ray.init(
            address="local",
            num_cpus=max(usable_cpus(), num_workers + 1),
            include_dashboard=num_workers > 0,  # Ray Train's clean-up asks it
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
        _end_on_sigterm()
        _restore_variable("TMPDIR", before)
        quieten_ray()
        _quieten_ray_data()
        yield
    finally:
        _restore_variable("TMPDIR", before)
        ray.shutdown()
        for _ in range(20):  # Ray's processes may still be writing their last lines
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


def _restore_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _remove_stale_sessions() -> None:
    """Removes what killed jobs of this user left behind: logs, which would fill the disk in time."""
    for folder in Path("/tmp").glob("ray-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and folder.owner() == Path("/proc/self").owner():
            shutil.rmtree(folder, ignore_errors=True)


def prepare_environment() -> None:
    """Sets the variables that Ray reads when it is imported, in case this process imports it before `ray_session`."""
    for name, value in (
        ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"),  # this environment is the workers' too: no need to build another
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
        ("RAY_ENABLE_AUTO_CONNECT", "0"),  # a thread that outlives a session must not start another
        ("RAY_DATA_LOG_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
    # A local Ray gets a token of its own, before ray is imported. Left alone, Ray would write one to the home folder,
    # for all to read, and every later `ray start` of this user would ask for it.
    if not os.environ.get("RAY_ADDRESS") and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def quieten_ray() -> None:
    """Leaves Ray's warnings and errors on the screen, not its course of events."""
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("ray.data._internal.execution.streaming_executor_state", "ray.data.exceptions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what a task raised, which is raised here too
    for name in (
        "ray.data._internal.progress",  # that its bars are off: ours are on
        "ray.data._internal.logical.rules.set_read_parallelism",  # that there are many tasks: the order wants them
        "ray.data._internal.util",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _quieten_ray_data() -> None:
    from ray.data import DataContext

    DataContext.get_current().issue_detectors_config.detectors = []  # they warn of memory that was asked for


# --- the end -----------------------------------------------------------------------------------------------------


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Prints names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False, title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
