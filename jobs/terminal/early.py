"""The start of a program, before its slow imports: it says that it starts, and a signal ends it in one line.

Imported by `jobs/__init__.py`, before anything else of a program; imports nothing slow itself. In a process that isn't
one of these programs (tests, a notebook) it changes nothing.
"""

import os
import signal
import sys
from types import FrameType

_ERASE_LINE = "\r\x1b[K"
_shown: list[bool] = []


def begin() -> None:
    """Makes a signal end this process at once, in one line; on a terminal, says that the program starts.

    Nothing is begun yet that would have to be ended, and an exception in the midst of an import may get lost. The
    status is 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. A signal that is ignored, as SIGINT is in a
    background job, stays ignored. While Python itself starts, some 30 ms, nobody can catch a signal.
    """
    if not _is_program():
        return
    _open_missing_streams()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    if sys.stdout.isatty() and not {"-h", "--help"} & set(sys.argv):
        print("starting ...", end="\r", flush=True)  # what is printed next replaces it
        _shown.append(True)


def end_of_start() -> None:
    """Removes the line that `begin` wrote on a terminal."""
    if _shown:
        _shown.clear()
        print(_ERASE_LINE, end="", flush=True)


def _open_missing_streams() -> None:
    """Opens the standard streams that this process was started without (`>&-`), on the null device.

    Otherwise the next file that is opened gets the number of such a stream, and what libraries write to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - as long as this process; it gets the lowest free number
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _is_program() -> bool:
    script = sys.argv[0]
    if script not in sys.orig_argv:  # a child of `multiprocessing`, which gets its parent's arguments
        return False
    if script == "-m":  # until Python has found the module
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith("jobs.")
    folder, name = os.path.split(os.path.abspath(script))
    return name == "image-pipeline" or (name.endswith(".py") and os.path.basename(folder) in ("jobs", "bench"))


def _leave(number: int, frame: FrameType | None) -> None:
    line = f"{_ERASE_LINE if _shown else ''}interrupted\n"
    try:
        os.write(1, line.encode())  # not print: the signal may have come while something was printed
    finally:
        os._exit(128 + number)
