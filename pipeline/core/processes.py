"""Processes of this machine: which belong together, and what memory and time they take."""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path


def process_tree(root: int) -> list[int]:
    """Returns a process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(path.read_text().rsplit(")")[-1].split()[1]), []).append(int(path.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def tree_megabytes(root: int) -> float:
    """Returns the memory of a process and all below it, what they share counted once (Pss), in MB."""
    total = 0
    for process in process_tree(root):
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3


def cpu_seconds(process: int) -> float:
    """Returns the CPU time that a process has taken so far; 0 for process 0, which stands for none."""
    if not process:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def exit_on_sigterm() -> None:
    """So that what was started is ended. Ray sets a handler of its own, whose status says nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
