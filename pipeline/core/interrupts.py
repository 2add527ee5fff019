"""Ctrl-C, SIGTERM and SIGHUP: long work stops where nothing is lost, and what must not be left half done is ended."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `uv run`, `timeout` and terminals may deliver one signal twice; a scheduler repeats SIGTERM while a run saves.
_SAME_KEY_SECONDS, _REPEAT_SECONDS = 0.5, 60.0


_PATIENCE = 3  # signals that are held back before the process gives way


class StopRequest:
    """Whether the work should stop: called from time to time by the work itself, at places where it can stop.

    Until the first call nobody would take note of a request, so a signal has its usual effect. Pickled, it becomes
    `remote`, which workers can call, or another request that nobody makes.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the signal that requests the stop; None without a request."""
        self.is_watched = False
        """Whether the work has called it, here or by `remote`."""
        self.remote: Callable[[], bool] | None = None
        """What workers in other processes call instead; picklable."""
        self._since = 0.0

    def __call__(self) -> bool:
        """Returns whether a stop is requested, and notes that the work looks."""
        self.is_watched = True
        return self.signal is not None

    def __reduce__(self) -> Any:
        return (_unchanged, (self.remote,)) if self.remote is not None else (StopRequest, ())

    @contextmanager
    def on_signals(self, tell: Callable[[], None]) -> Iterator[None]:
        """Lets the first SIGINT, SIGTERM or SIGHUP in the block request the stop; a second Ctrl-C has its usual effect.

        tell: called at the request, in a thread, to tell the user. Signals that the process ignores stay ignored.
        Outside the main thread, where Python allows no handlers, it changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def take(number: int, frame: FrameType | None) -> None:
            same = _SAME_KEY_SECONDS if number == signal.SIGINT else _REPEAT_SECONDS
            if self.signal is not None and time.monotonic() - self._since < same:
                return
            if self.signal is None and self.is_watched:
                self.signal, self._since = number, time.monotonic()
                if number == signal.SIGHUP:
                    _let_go_of_terminal()
                # In a thread: the signal may have come while this one was printing.
                threading.Thread(target=tell, daemon=True).start()
                return
            _restore(before)
            signal.raise_signal(number)

        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, take)
        try:
            yield
        finally:
            _restore(before)

    def deliver(self) -> None:
        """Gives the signal its usual effect, after the work has stopped: KeyboardInterrupt, SystemExit, or the end."""
        if self.signal is not None and threading.current_thread() is threading.main_thread():
            signal.raise_signal(self.signal)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Holds SIGINT, SIGTERM and SIGHUP back until the block has ended: for some seconds that must not be cut in two.

    A third one ends the process at once. Outside the main thread, where Python allows no handlers, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) == _PATIENCE:
            os._exit(128 + number)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, hold)
    try:
        yield
    finally:
        _restore(before)
        if held:
            signal.raise_signal(held[0])


def _let_go_of_terminal() -> None:
    """Sends what is still printed nowhere: writing to a terminal that is closed would fail, and end the work."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # else it isn't Python's, and can't be set from here
            signal.signal(number, handler)


def _unchanged(remote: Callable[[], bool]) -> Callable[[], bool]:
    return remote
