"""Calls that end in the middle as a process that is killed does, and programs that are killed."""

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import StorageError
from pipeline.storage import files
from tests.support.jobs import command
from tests.support.servers.fault_proxy import FaultProxy

_WRITES = ("write_once", "replace", "write_bytes", "delete_files")


def killed_at_write(n: int, call: Callable[[], Any]) -> bool:
    """Calls a function that is stopped before its n-th write or removal of files; returns whether there was one."""
    numbers = itertools.count(1)

    def stopping(write: Callable[..., Any]) -> Callable[..., Any]:
        def stop_or_write(*arguments: Any, **options: Any) -> Any:
            if next(numbers) == n:
                raise StorageError("killed")
            return write(*arguments, **options)

        return stop_or_write

    with pytest.MonkeyPatch.context() as patch:
        for name in _WRITES:
            patch.setattr(files, name, stopping(getattr(files, name)))
        try:
            call()
        except StorageError:
            return True
    return False


def start_job(line: list[str], cwd: Path, address: str) -> "subprocess.Popen[str]":
    """Starts a job in a process group of its own, with its S3 at an address. line: its name and arguments."""
    return subprocess.Popen(
        command(*line),
        cwd=cwd,
        env={**os.environ, "AWS_ENDPOINT_URL": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def kill_at(moments: Iterable[tuple[str, bool, int]], line: list[str], cwd: Path, s3: tuple[str, FaultProxy]) -> None:
    """Starts a job once for each moment, and kills it there by SIGKILL.

    moments: a PUT, by a pattern of its path; whether the storage has received it when the job is killed; how many such
    PUTs pass before. s3: as from `fault_proxy`.
    """
    address, proxy = s3
    for moment in moments:
        proxy.hold(*moment)
        process = start_job(line, cwd, address)
        while not proxy.holds.wait(0.05):
            assert process.poll() is None, (moment, process.communicate())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    proxy.hold("")
