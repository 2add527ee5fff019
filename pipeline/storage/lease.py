"""A lease: a lock file by which one of several processes, on any machines, may write to a target.

The holder rewrites the lease file every few seconds by a conditional write. A process that finds a lease watches it. If
the file changes, its holder is alive. If it stays the same for the time to live that it states, its holder is dead. So
the clocks of two machines are never compared. A holder on this machine whose process has ended counts as dead at once.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pipeline.core.errors import DatasetError, StorageError
from pipeline.core.progress import Progress, silent
from pipeline.storage import files

TTL_SECONDS = 30.0
_DAMAGED = "if no other process writes there, delete this file, then run the same command again"


class _Holder(msgspec.Struct):
    """What a process must know of the holder of a lease."""

    owner: str
    what: str
    host: str
    boot: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    ttl_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Lease:
    """A lease that this process holds, and that a thread renews."""

    def __init__(self, uri: str, content: dict[str, Any], version: str, ttl_seconds: float) -> None:
        self._uri, self._content, self._version = uri, content, version
        self._ttl_seconds = ttl_seconds
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        # Six times in its life: some renewals may be late, or fail and be retried, before anyone takes the lease over.
        while not self._ended.wait(self._ttl_seconds / 6):
            self._content["beat"] += 1
            try:
                version = files.replace(self._uri, _encode(self._content), self._version)
            except (OSError, StorageError):  # `check` reports it; the writes under the lease fail in the same way
                version = None
            if version is None:
                self._lost = True
                return
            self._version = version

    def check(self) -> None:
        """Raises DatasetError if another process has taken the lease over, or if it couldn't be renewed."""
        if self._lost or not (self._thread.is_alive() or self._ended.is_set()):
            raise DatasetError(
                f"{self._uri.split('?')[0]}: this process didn't renew its lease in time, and another has taken "
                "over; let that one finish, then run the same command again"
            )

    def release(self) -> None:
        """Gives the lease back, if this process still holds it."""
        self._ended.set()
        self._thread.join()
        found = None if self._lost else files.read_version(self._uri)
        if found is not None and _holder(self._uri, found[0]).owner == self._content["owner"]:
            files.delete_files(self._uri.rsplit("/", 1)[0], [files.basename(self._uri)])


@contextmanager
def hold_lease(uri: str, what: str, progress: Progress = silent, ttl_seconds: float = TTL_SECONDS) -> Iterator[Lease]:
    """Holds the lease at `uri` for the block. Waits until the lease of a dead holder has expired.

    what: the target, for the error message of a process that finds this lease. Raises DatasetError if a live process
    holds it.
    """
    content = {
        "owner": uuid.uuid4().hex,
        "what": what,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "ttl_seconds": ttl_seconds,
        "beat": 0,
    }
    lease = Lease(uri, content, _acquire(uri, content, progress), ttl_seconds)
    try:
        yield lease
    finally:
        lease.release()


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _acquire(uri: str, content: dict[str, Any], progress: Progress) -> str:
    while True:
        if files.write_once(uri, _encode(content)):
            found = files.read_version(uri)
            if found is not None and _holder(uri, found[0]).owner == content["owner"]:
                return found[1]
            continue  # another process took it at once, as if we were dead
        found = files.read_version(uri)
        if found is None:
            continue  # given back between the two requests
        holder = _holder(uri, found[0])
        if not _is_dead(holder):
            _watch(uri, holder, found[1], progress)
        version = files.replace(uri, _encode(content), found[1])  # of several that wait for a dead holder, one succeeds
        if version is not None:
            return version


def _holder(uri: str, data: bytes) -> _Holder:
    return files.parse_record(data, uri.split("?")[0], _Holder, _DAMAGED)


def _watch(uri: str, holder: _Holder, version: str, progress: Progress) -> None:
    """Waits until the lease has expired or has been given back. Raises DatasetError if the holder is alive."""
    start = time.monotonic()
    while (waited := time.monotonic() - start) < holder.ttl_seconds:
        progress("lease", int(waited), int(holder.ttl_seconds), f"waiting whether process {holder.pid} is alive")
        time.sleep(min(1.0, holder.ttl_seconds / 10))
        found = files.read_version(uri)
        if found is None:
            return
        if found[1] != version:
            raise DatasetError(
                f"{holder.what}: another process is writing there now (process {holder.pid} on "
                f"{holder.host}); wait for it, or end it"
            )


def _is_dead(holder: _Holder) -> bool:
    # The boot ID, too: hosts in containers often share names, and process ids start again after a reboot.
    if (holder.host, holder.boot) != (socket.gethostname(), _boot()):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # The process is alive. It may be this one (another thread holds the lease), or a new one with an old number.
    return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: then leases of this machine expire as all others do
        return uuid.uuid4().hex
