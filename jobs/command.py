"""What all commands share: parsing of flags, exit statuses, and errors in one line."""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from jobs.console import Display, ToConsole, console, print_table
from pipeline.cluster.ray_errors import user_error, user_message
from pipeline.core.errors import BudgetError, UnavailableError
from pipeline.core.processes import ended_by, exit_on_signals
from pipeline.core.user_folders import account_variables

__all__ = [
    "Display", "call", "console", "examples", "group", "option", "parse", "print_table", "run", "run_process",
]  # fmt: skip
Args = TypeVar("Args")


def run(main: Callable[[Args], None], args_type: type[Args], doc: str, resume_hint: str = "") -> None:
    """Parses this process's command line into `args_type`, calls `main`, and ends the process if it failed.

    Exit status: 2 for a user error, 1 for storage that doesn't answer or a budget that is used up, 130 after Ctrl-C,
    143 after SIGTERM, 129 after SIGHUP. Other exceptions are defects and keep their traceback.

    doc: the description for `--help`, with examples at its end (`examples`). resume_hint: printed after Ctrl-C: what
    the same command does when it is run again.
    """
    run_process(lambda: call(main, parse(args_type, doc), resume_hint))


def run_process(main: Callable[[], int]) -> None:
    """Runs `main`, which returns an exit status, as all that this process does. Only for a process's entry point."""
    _allow_bytecode()
    exit_on_signals()
    os.environ.update(account_variables())
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:  # `image-pipeline registry list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except BaseException:
        if ended_by() is None:
            raise
        status = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # everything is written and given back: let the interpreter end
    _end(ended_by() or status)


def _end(status: int) -> NoReturn:
    """Ends this process with `status`. All of its work is written and given back."""
    if status and "ray" in sys.modules:
        # Threads of Ray's core that were interrupted may crash the interpreter while it ends: status -11 for 1 or 130.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


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
    except KeyboardInterrupt:
        console.print(f"interrupted; {resume_hint}" if resume_hint else "interrupted")
        return 130
    except BudgetError as error:
        console.print(str(error))
        return 1
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        print(f"error: {user_message(known)}", file=sys.stderr)
        return 1 if isinstance(known, UnavailableError) else 2
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
    return 0


def _allow_bytecode() -> None:
    """Lets this process and its children cache bytecode, which halves the time that Ray's workers take to start."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# --- flags and help ----------------------------------------------------------------------------------------------

_EXAMPLES = "\nExamples:\n"
_SCRIPT = re.compile(r"\buv run jobs/\w+\.py")


def parse(args_type: type[Args], doc: str, program: str | None = None, arguments: Sequence[str] | None = None) -> Args:
    """Returns the flags as an `args_type`; nested dataclasses are groups of flags.

    Ends the process with status 0 after `--help`, whose last lines are the examples of `doc`, and with 2 for flags that
    can't be parsed.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    description = doc.partition(_EXAMPLES)[0].strip()
    try:
        return tyro.cli(args_type, prog=program, description=description, args=arguments, config=config)
    except SystemExit as end:
        if not end.code and (lines := examples(doc, program)):
            print("\nexamples:", *(f"  {line}" for line in lines), sep="\n")
        raise


def examples(doc: str, program: str | None = None) -> list[str]:
    """Returns the command lines below "Examples:" at the end of a module's docstring, each as one line.

    program: replaces `uv run jobs/NAME.py` at their beginning.
    """
    lines = doc.partition(_EXAMPLES)[2].replace("\\\n", " ").splitlines()
    shown = (" ".join(line.split()) for line in lines if line.strip())
    return [_SCRIPT.sub(program, line) if program else line for line in shown]


def option(text: str, value: str, default: str = "") -> Any:
    """Returns the annotation of a flag: its help, a name for its value, and the default that `--help` shows."""
    return tyro.conf.arg(help=text, metavar=value, help_behavior_hint=f"(default: {default})" if default else "")


def group(title: str) -> Any:
    """Returns the annotation of a nested dataclass whose flags `--help` shows together, below "TITLE options".

    The first line of the dataclass's docstring is shown below the title:

        data: Annotated[DataArgs, command.group("data")] = DataArgs()
    """
    return tyro.conf.arg(name=title)
