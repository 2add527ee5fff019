"""The first milliseconds of a program, before its slow imports: it says that it starts, and Ctrl-C ends it in one line.

Imported by `jobs/__init__.py`, before anything else of a program; imports nothing slow itself. In a process that isn't
one of these programs (tests, a notebook) it changes nothing.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

_ERASE_LINE = "\r\x1b[K"
_interrupts: list[int] = []
_shown: list[bool] = []


def begin() -> None:
    """Makes Ctrl-C end this process in one line with status 130; on a terminal, says that the program starts."""
    if not _is_program():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a background job
        signal.signal(signal.SIGINT, _interrupt)
    before = sys.excepthook
    sys.excepthook = lambda kind, error, trace: _end() if _interrupts else before(kind, error, trace)
    if sys.stdout.isatty() and not {"-h", "--help"} & set(sys.argv):
        print("starting ...", end="\r", flush=True)  # what is printed next replaces it
        _shown.append(True)


def end_of_start() -> None:
    """Removes the line that `begin` wrote on a terminal."""
    if _shown:
        _shown.clear()
        print(_ERASE_LINE, end="", flush=True)


def was_interrupted() -> bool:
    """Returns whether Ctrl-C was pressed: what was raised then may be another exception, in the midst of an import."""
    return bool(_interrupts)


def _is_program() -> bool:
    script = Path(sys.orig_argv[1] if len(sys.orig_argv) > 1 else "")
    return script.name == "image-pipeline" or (script.suffix == ".py" and script.parent.name in ("jobs", "bench"))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _end() -> None:
    print("interrupted", flush=True)
    sys.stderr.flush()
    os._exit(130)
