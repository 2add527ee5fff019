"""Processes of this machine: process trees, their memory and CPU time."""

import os
import sys
from contextlib import suppress

import psutil


def process_tree(root: int) -> list[int]:
    """Returns the process id `root`, which is first, and those of all processes below it."""
    with suppress(psutil.NoSuchProcess):
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    return [root]


def children_naming(text: str) -> list[psutil.Process]:
    """Returns this process's children with `text` in their command line, and all processes below them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(text in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def wait_or_kill(processes: list[psutil.Process], seconds: float) -> None:
    """Waits until the processes have ended, and kills those that still run after `seconds`."""
    alive = psutil.wait_procs(processes, timeout=seconds)[1]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=1)


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


def is_ray_worker() -> bool:
    """Returns whether Ray started this process, for tasks or actors. Doesn't import Ray."""
    return os.path.basename(sys.argv[0]) == "default_worker.py"
