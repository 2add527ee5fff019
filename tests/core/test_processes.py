"""Process trees, and what they take, against processes started here."""

import os
import subprocess
import sys
import time

import psutil

from pipeline.core.processes import (
    children_naming,
    cpu_seconds,
    process_tree,
    tree_megabytes,
    wait_or_kill,
)

_PARENT = (
    "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {!r}]); print(c.pid, flush=True); c.wait()"
)


def test_a_tree_has_the_process_first_and_its_descendants() -> None:
    child = "import sys; held = bytearray(40_000_000); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = {int(parent.stdout.readline()), int(parent.stdout.readline())} - {1}  # in either order
        assert process_tree(parent.pid) == [parent.pid, *grandchild]
        assert tree_megabytes(parent.pid) > 40
        assert set(process_tree(os.getpid())) >= {os.getpid(), parent.pid, *grandchild}
        assert parent.stdin is not None
        parent.stdin.close()
    assert process_tree(parent.pid) == [parent.pid]
    assert tree_megabytes(parent.pid) == 0


def test_cpu_time_grows_with_work() -> None:
    before = cpu_seconds(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert cpu_seconds(os.getpid()) - before >= 0.08  # the system counts in hundredths
    assert cpu_seconds(0) == 0


def test_processes_that_go_on_are_killed_and_others_left_alone() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with (
        subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)", "ours-41"]) as ours,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other,
    ):
        while len(found := children_naming("ours-41")) < 2:
            time.sleep(0.05)
        wait_or_kill(found, 0.1)
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found)
        assert ours.wait(5) is not None
        assert other.poll() is None
        other.kill()
