"""Calls a function on images in child processes, so that an image on which a process dies costs that image alone.

A library written in C may crash, take all memory or never return; Python sees none of it. Children are slower than the
process itself, so a task uses them only after it has died once.
"""

import faulthandler
import logging
import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from pipeline.core.thread_warnings import thread_warnings

IMAGE_SECONDS = 300  # most for one image; 100 megapixels take about 5; a guess that only a library that hangs reaches
_MOST_BYTES = 4 << 30  # that a child may allocate: 100 megapixels, decoded and converted, take about 2 GiB

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Died:
    """In place of the result of a call on which two processes died."""

    reason: str
    """KIND: DETAIL, see `quarantine.parquet`: "crash: ..." or "too slow: ..."."""


def call_isolated(items: Sequence[T], call: Callable[[T], R], seconds: int = IMAGE_SECONDS) -> Iterator[R | Died]:
    """Yields the result of `call` for each item, in order, computed in a child process.

    An item on which a child dies is tried once more, alone in a child of its own. seconds: the most for one item. No
    other thread may hold a lock that `call` needs: the child is a fork.
    """
    while items:
        results, _ = _in_child(items, call, seconds)
        yield from results
        items = items[len(results) :]
        if items:
            results, status = _in_child(items[:1], call, seconds)
            yield results[0] if results else Died(_reason(status, seconds))
            items = items[1:]


def limit_time(seconds: int) -> None:
    """Has the system end this process after `seconds`, whatever code it runs then; 0 takes that back."""
    signal.alarm(seconds)


def _reason(status: int, seconds: int) -> str:
    """status: as of `Process.exitcode`."""
    if -status == signal.SIGALRM:
        return f"too slow: not decoded within {seconds} s"
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"crash: the process that decodes it ends with {how}"


def _in_child(items: Sequence[T], call: Callable[[T], R], seconds: int) -> tuple[list[R], int]:
    """Returns (results of the first items, exit code of the child); of all items unless the child died."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")  # the child has the items, and all that is loaded, without a copy
    child = fork.Process(target=_run_child, args=(items, call, seconds, sender), daemon=True)
    with thread_warnings("ignore"):  # Python 3.12 warns of forks beside threads
        child.start()
    sender.close()
    results: list[R] = []
    with receiver, suppress(EOFError, OSError):  # raised when the child has died
        while len(results) < len(items):
            results.append(receiver.recv())
    if len(results) == len(items):
        child.kill()  # it has nothing left to do but to end
    child.join()
    return results, child.exitcode or 0


def _run_child(items: Sequence[T], call: Callable[[T], R], seconds: int, sender: Connection) -> None:
    faulthandler.disable()  # the parent tells of the crash, in one line
    logging.disable()  # a thread of the parent's that shows progress may hold the lock of what log lines go to
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _limit_memory()
    for item in items:
        limit_time(seconds)
        result = call(item)
        limit_time(0)
        sender.send(result)


def _limit_memory() -> None:
    """Makes allocations fail before the system runs out of memory and ends a process of its choice."""
    with suppress(OSError, ValueError):  # no Linux, or less is allowed already
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + _MOST_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
