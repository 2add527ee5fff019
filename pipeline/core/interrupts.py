"""Ctrl-C, SIGTERM and SIGHUP: long work stops where nothing is lost, and what must not be left half done is ended."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_SIGNALS = (signal.SIGINT, *ENDING_SIGNALS)
# `uv run`, `timeout` and terminals may deliver one signal twice; a scheduler repeats SIGTERM while a run saves.
_SAME_KEY_SECONDS, _REPEAT_SECONDS = 0.5, 60.0
_PATIENCE = 3  # signals that are held back before the process gives way


class _Signals:
    """Numbers of the signals that came, without those that only repeat the one before."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._since = 0.0

    def add(self, number: int) -> bool:
        """Returns whether a signal is a new one: the only rule for what counts as a repetition."""
        seconds = _SAME_KEY_SECONDS if number == signal.SIGINT else _REPEAT_SECONDS
        if self.numbers and time.monotonic() - self._since < seconds:
            return False
        self.numbers.append(number)
        self._since = time.monotonic()
        return True


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
        self._came = _Signals()

    def __call__(self) -> bool:
        """Returns whether a stop is requested, and notes that the work looks."""
        self.is_watched = True
        return self.signal is not None

    def __reduce__(self) -> Any:
        return (_unchanged, (self.remote,)) if self.remote is not None else (StopRequest, ())

    @contextmanager
    def on_signals(self, tell: Callable[[], None]) -> Iterator[None]:
        """Lets the first SIGINT, SIGTERM or SIGHUP in the block request the stop; a second Ctrl-C has its usual effect.

        The end of a `deadline` is such a signal, too.

        tell: called at the request, in a thread, to tell the user. Signals that the process ignores stay ignored.
        Outside the main thread, where Python allows no handlers, it changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = _handlers()

        def take(number: int, frame: FrameType | None) -> None:
            if not self._came.add(number):
                return
            if self.signal is None and self.is_watched:
                self.signal = number
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
    before, held = _handlers(), _Signals()

    def hold(number: int, frame: FrameType | None) -> None:
        if held.add(number) and len(held.numbers) == _PATIENCE:
            os._exit(128 + number)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, hold)
    try:
        yield
    finally:
        _restore(before)
        if held.numbers:
            signal.raise_signal(held.numbers[0])


@contextmanager
def delay_sigterm() -> Iterator[None]:
    """Delays SIGTERM, for this thread and those that it starts in the block, until the block has ended.

    For libraries that install a handler beside Python's: Python's is set again before SIGTERM is let through. Threads
    that are started keep it blocked, so that the system gives it to another one. Processes inherit the delay, too,
    unless they are started in `undelayed_sigterm`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore({signal.SIGTERM: signal.getsignal(signal.SIGTERM)})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def undelayed_sigterm() -> Iterator[None]:
    """Lets SIGTERM through in the block: for a child process that is started in `delay_sigterm`."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deadline(seconds: float, seconds_between_repeats: float) -> Iterator[None]:
    """Raises KeyboardInterrupt in the block once `seconds` are over, again and again until it has left the block.

    Only for the main thread. It needs the timer and the handler of SIGALRM, and restores both.
    """
    handler = signal.signal(signal.SIGALRM, _time_is_up)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, seconds_between_repeats)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _time_is_up(number: int, frame: FrameType | None) -> None:
    # Ray's C++ core passes on KeyboardInterrupt from a signal handler, and no other exception.
    raise KeyboardInterrupt


# --- the end of a process ----------------------------------------------------------------------------------------

_taken = _Signals()


def exit_on_signals(numbers: Iterable[signal.Signals] = ENDING_SIGNALS) -> None:
    """Makes SIGTERM and SIGHUP end this process as `sys.exit(128 + signal)` does, 143 and 129, and SIGINT by its name.

    So `finally` blocks run and end child processes. Further signals don't interrupt them; the third ends the process at
    once. SIGHUP is what a terminal sends that is closed; a process that was started with nohup ignores it, and goes on
    doing so. Does nothing outside the main thread, where Python sets no handler.

    numbers: the signals; with SIGINT, which raises KeyboardInterrupt as ever, only for a process of one's own.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)


def ended_by() -> int | None:
    """Returns 128 + the number of the first signal that `exit_on_signals` took, or None if none came.

    It is the exit status of this process, whatever else was raised while it was cleaning up.
    """
    return 128 + _taken.numbers[0] if _taken.numbers else None


def _exit(number: int, frame: FrameType | None) -> None:
    if _imports_torch(frame):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # the same signal again, a little later
        return
    if not _taken.add(number):
        return
    if len(_taken.numbers) == _PATIENCE:
        os._exit(128 + _taken.numbers[0])
    if len(_taken.numbers) == 1:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _imports_torch(frame: FrameType | None) -> bool:
    """Whether a module of torch is being imported: its C++ core aborts the process if a signal raises in there."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


def deliver_again() -> None:
    """Lets the signal that ends this process come once more: what it raised got lost in a `__del__` or a callback."""

    def send() -> None:
        number, _taken.numbers[:] = _taken.numbers[0], []
        os.kill(os.getpid(), number)

    threading.Timer(0.05, send).start()  # not here: Python is still busy with what got lost


def _handlers() -> dict[signal.Signals, Any]:
    """Returns the handlers of the signals that ask this process to stop; with that of a `deadline`, if there is one."""
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return found | ({signal.SIGALRM: _time_is_up} if signal.getsignal(signal.SIGALRM) is _time_is_up else {})


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
