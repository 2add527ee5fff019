"""Flags of a command: declared by dataclasses, parsed by tyro, shown by `--help`."""

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro

from jobs.arguments.declared import CONFIG
from jobs.arguments.errors import UsageError, explain
from pipeline.core.errors import PipelineError

Args = TypeVar("Args")
_EXAMPLES = "\nExamples:\n"
_SCRIPT = re.compile(r"\buv run jobs/(\w+/)?\w+\.py")
_USER_ERROR = 2
_WIDEST = 120  # columns; longer lines are hard to read


def parse(args_type: type[Args], doc: str, program: str | None = None, arguments: Sequence[str] | None = None) -> Args:
    """Returns the flags as an `args_type`; nested dataclasses are groups of flags.

    Ends the process with status 0 after `--help`, whose last lines are the examples of `doc`, and with 2 and one line
    on standard error for flags that can't be parsed: the flag, its value, and what is expected or the nearest flag.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def refuse(event: Any) -> None:
        if isinstance(event, tyro._errors.MissingArgs) and not event.unrecognized_tokens:
            _show(_part_that_shows(args_type, arguments))
        raise UsageError(explain(event, arguments, args_type))

    # What tyro draws depends on the encoding.
    shown = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8", errors="replace")
    try:
        # tyro prints nothing but help and completion here: its errors end in `refuse`.
        with tyro._errors.on_parse_error(refuse), contextlib.redirect_stdout(shown):
            args = tyro.cli(args_type, prog=program, description="", args=arguments, config=CONFIG)
            _show(next((each for each in vars(args).values() if hasattr(each, "shown")), None))
            return args
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(_USER_ERROR) from None
    except SystemExit as end:
        shown.seek(0)
        text = shown.read()
        if not end.code:
            _print(_help(text, doc, program) if {"-h", "--help"} & {*arguments} else text)
        raise


def _part_that_shows(args_type: type, arguments: list[str]) -> Any:
    """Returns the part of a command's flags that may show something and end, although other flags are missing."""
    types = (each for each in get_type_hints(args_type).values() if hasattr(each, "shown"))
    found = next(types, None)
    return found and tyro.cli(found, args=arguments, config=CONFIG, return_unknown_args=True)[0]


def _show(part: Any) -> None:
    """Prints what a part of the flags shows, and ends the process with status 0; does nothing if it shows nothing."""
    text = part and part.shown()
    if text is not None:
        _print(text)
        raise SystemExit(0)


def _print(text: str) -> None:
    """Prints a text; a reader that has left, such as `head`, is no error."""
    with contextlib.suppress(BrokenPipeError):
        print(text.rstrip(), flush=True)
        return
    sys.stdout = io.StringIO()  # or the interpreter complains once more at its end


def _help(from_tyro: str, doc: str, program: str | None) -> str:
    """Returns the text of `--help`: usage, description, groups of flags, examples; no wider than the terminal."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    usage, _, groups = from_tyro.partition("\n")
    paragraphs = doc.partition(_EXAMPLES)[0].strip().split("\n\n")
    description = [textwrap.fill(" ".join(each.split()), width, break_on_hyphens=False) for each in paragraphs]
    lines = examples(doc, program)
    shown = ["examples:\n" + "\n".join(_folded(line, width) for line in lines)] if lines else []
    usage = textwrap.fill(usage, width, subsequent_indent=" " * 7, break_on_hyphens=False)
    return "\n\n".join([usage, *description, groups.strip("\n"), *shown])


def _folded(line: str, width: int) -> str:
    """Returns a command line that can be copied from a terminal of this width: continued lines end with a backslash."""
    folded = textwrap.wrap(
        line, width - 4, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False, break_long_words=False
    )
    return " \\\n".join(folded)


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

    The titles, in this order: data, recipe, hardware, output, advanced; others only where none of them fits.
    Dataclasses of one title are shown together, below the first line of the first one's docstring:

        data: Annotated[DataArgs, command.group("data")] = DataArgs()
    """
    return tyro.conf.arg(name=title)


def given_flags(args: Any, defaults: Any) -> list[str]:
    """Returns the flags with another value than in `defaults`, such as "--onto"; those of nested dataclasses, too."""
    given = []
    for each in fields(args):
        value, default = getattr(args, each.name), getattr(defaults, each.name)
        if is_dataclass(value):
            given += given_flags(value, default)
        elif value != default:
            given.append(f"--{each.name.replace('_', '-')}")
    return given
