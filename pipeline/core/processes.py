"""Processes of this machine: process trees, their memory and CPU time, and a clean end on SIGTERM."""

import signal
import sys
import threading
from contextlib import suppress

import psutil


def process_tree(root: int) -> list[int]:
    """Returns the process id `root`, which is first, and those of all processes below it."""
    with suppress(psutil.NoSuchProcess):
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    return [root]


def tree_megabytes(root: int) -> float:
    """Returns the memory of a process and of all below it in MB; what they share is counted once (Pss, Linux only)."""
    total = 0
    for process in process_tree(root):
        with suppress(psutil.Error):
            total += psutil.Process(process).memory_full_info().pss
    return total / 1e6


def cpu_seconds(process: int) -> float:
    """Returns the CPU time that a process has taken so far; 0 for process 0, which stands for none."""
    if not process:
        return 0.0
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def exit_on_sigterm() -> None:
    """Makes SIGTERM end this process as `sys.exit(143)` does, so that `finally` blocks run and end child processes.

    Does nothing outside the main thread, where Python sets no handler.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
