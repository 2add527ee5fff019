"""What all commands share: parsing of flags, exit statuses, and errors in one line."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeVar

from jobs.arguments.flags import examples, group, option, parse
from jobs.terminal import continuation, early
from jobs.terminal.console import Display, ToConsole, console, loading, print_table
from jobs.terminal.continuation import goes_on_with
from pipeline.cluster.ray_errors import user_error, user_message
from pipeline.core.errors import BudgetError, UnavailableError
from pipeline.core.interrupts import ENDING_SIGNALS, deliver_again, ended_by, exit_on_signals
from pipeline.core.user_folders import account_variables

__all__ = [
    "Display", "call", "console", "examples", "goes_on_with", "group", "loading", "option", "parse",
    "print_failure", "print_table", "run", "run_process",
]  # fmt: skip
Args = TypeVar("Args")
_CTRL_C = 130
_SIGNALS = (signal.SIGINT, *ENDING_SIGNALS)


def run(main: Callable[[Args], None], args_type: type[Args], doc: str, resume_hint: str = "") -> None:
    """Parses this process's command line into `args_type`, calls `main`, and ends the process if it failed.

    Exit status: 2 for a user error, 1 for storage that doesn't answer or a budget that is used up, 130 after Ctrl-C,
    143 after SIGTERM, 129 after SIGHUP. Other exceptions are defects and keep their traceback.

    doc: the description for `--help`, with examples at its end (`examples`). resume_hint: printed after Ctrl-C, before
    the command that goes on: what it does.
    """
    run_process(lambda: call(main, parse(args_type, doc), resume_hint))


def run_process(main: Callable[[], int]) -> None:
    """Runs `main`, which returns an exit status, as all that this process does. Only for a process's entry point."""
    _allow_bytecode()
    try:
        _end_in_one_line()
        os.environ.update(account_variables())
        status = main()
        _ignore_signals()
    except BrokenPipeError:  # `image-pipeline registry list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except BaseException as error:
        status = _status_of_end(error)
    _ignore_signals()
    _end(ended_by() or status)


def _status_of_end(error: BaseException) -> int:
    """Returns the exit status of what ended `main` although `call` returns a status; a defect is raised again.

    That is argparse, or a signal that came before `call` began or after it had returned.
    """
    status = _status_of_signal(error)
    if status is not None:
        say_interrupted("")
        return status
    if not isinstance(error, SystemExit):
        raise error
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _status_of_signal(error: BaseException) -> int | None:
    """Returns the exit status if a signal raised `error`, else None."""
    if ended_by() is None and isinstance(error, KeyboardInterrupt):
        return _CTRL_C
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # the handler that Ray has while it starts
        return 128 + signal.SIGTERM
    return ended_by()


def _ignore_signals() -> None:
    """Lets the interpreter end undisturbed: everything is written and given back."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_in_one_line() -> None:
    """Lets a signal end this process after its `finally` blocks, without tracebacks of what it cuts in two."""
    report, report_thread = sys.unraisablehook, threading.excepthook

    def unraisable(lost: Any) -> None:
        if ended_by() is None:
            report(lost)
        elif issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit)):
            deliver_again()

    sys.unraisablehook = unraisable
    threading.excepthook = lambda error: None if ended_by() else report_thread(error)
    exit_on_signals(_SIGNALS)


def _end(status: int) -> NoReturn:
    """Ends this process with `status`, as the interpreter does, but without taking torch's and Ray's modules apart.

    That takes two seconds in which nothing is shown. Threads are waited for, and what is registered for the end is
    called, except after a failure of a process with Ray: threads of Ray's core that were interrupted may crash it then,
    with status -11 for 1 or 130.
    """
    early.end_of_start()
    if _is_profiled() or not {"ray", "torch"} & sys.modules.keys():
        sys.exit(status)
    if not status or "ray" not in sys.modules:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    logging.shutdown()
    lost = [_flush(sys.stdout, "output"), _flush(sys.stderr, "errors")]
    os._exit(status or int(any(lost)))


def _is_profiled() -> bool:
    """Whether a profiler runs this process. It writes its file when `SystemExit` reaches it."""
    if sys.version_info >= (3, 12) and sys.monitoring.get_tool(sys.monitoring.PROFILER_ID):
        return True
    return sys.getprofile() is not None


def _flush(stream: TextIO | None, name: str) -> bool:
    """Writes what a stream still holds. Returns whether it is lost, after a line about it.

    stream: None if this process was started without it (`2>&-`). name: for the line. What a reader doesn't wait for
    (`| head -1`) isn't lost.
    """
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"error: the standard {name} can't be written: {error.strerror}\n".encode())
        return True
    return False


def call(main: Callable[[Args], None], args: Args, resume_hint: str = "") -> int:
    """Calls `main` and returns the exit status that `run` describes; prints the package's log records meanwhile.

    Changes nothing of the process that lasts, so that tests can call it many times.
    """
    log, handler = logging.getLogger("pipeline"), ToConsole()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        main(args)
    except BaseException as error:
        status = _status(error, resume_hint)
        if status is None:
            raise
        return status
    finally:
        continuation.forget()
        log.setLevel(level)
        log.removeHandler(handler)
    return 0


def _status(error: BaseException, resume_hint: str) -> int | None:
    """Returns the exit status of an error, after telling the user; None for a defect, which keeps its traceback."""
    status = _status_of_signal(error)
    if status is not None:
        say_interrupted(resume_hint)
        return status
    if isinstance(error, BudgetError):
        console.print(str(error))
        return 1
    known = user_error(error) if isinstance(error, Exception) else None
    if known is None:
        return None
    print(f"error: {user_message(known)}", file=sys.stderr)
    return 1 if isinstance(known, UnavailableError) else 2


def print_failure(error: Exception) -> None:
    """Prints an error as `run` does, for a command that chooses the status: in one line, or a defect's traceback."""
    if _status(error, "") is None:
        traceback.print_exception(error)


def say_interrupted(resume_hint: str) -> None:
    """Prints that the command was interrupted and, in the last line, the command that goes on."""
    with contextlib.suppress(OSError):  # after SIGHUP there is no terminal any more
        console.print(f"interrupted; {resume_hint}:" if resume_hint else "interrupted")
        if resume_hint:
            console.print(continuation.command_to_go_on())


def _allow_bytecode() -> None:
    """Lets this process and its children cache bytecode, which halves the time that Ray's workers take to start."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
