"""A watchdog: ends a training process that makes no progress, so that Ray starts the workers again.

Without it, a collective operation whose partner is gone, or a file system that never answers, hangs for ever.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed when tried again


class Watchdog:
    """Ends this process with status 75 if `beat` isn't called for `seconds`; 0 never does.

    warn: called before with a line that names the last beat; the stacks of all threads go to standard error.
    `faulthandler.dump_traceback_later(exit=True)` would end the process, too, but with status 1, without the line, and
    with one timer a process that the host application may be using.
    """

    def __init__(self, seconds: float, warn: Callable[[str], None]) -> None:
        self._seconds, self._warn = seconds, warn
        self._last, self._activity = time.monotonic(), "start"
        self._stopped = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, activity: str) -> None:
        """Notes that the process makes progress. activity: what it has just finished, for the message."""
        self._last, self._activity = time.monotonic(), activity

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._seconds / 4)):
            idle = time.monotonic() - self._last
            if idle > self._seconds:
                self._end_process(f"no progress for {idle:.0f} s after {self._activity}; this worker ends, to restart")

    def _end_process(self, reason: str) -> None:
        # A message that can't be delivered must not keep the process alive.
        with contextlib.suppress(Exception):
            self._warn(reason)
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(sys.__stderr__ or 2)
        # sys.exit would end this thread alone, and atexit handlers could hang like everything else.
        os._exit(EXIT_STATUS)
