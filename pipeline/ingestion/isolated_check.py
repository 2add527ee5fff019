"""Checks images in child processes, so that an image on which a process dies costs that image and not its task.

That is slower than in the task itself, so a task does so only after it has died once. A library written in C may crash,
take all memory or never return; Python sees none of it.
"""

import faulthandler
import hashlib
import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from pipeline.dataset.image_codec import Buffer
from pipeline.dataset.thread_warnings import thread_warnings
from pipeline.ingestion.image_check import Refused, Stored
from pipeline.ingestion.source_reader import gather

IMAGE_SECONDS = 300  # most for one image; 100 megapixels take about 5; a guess that only a library that hangs reaches
_MOST_BYTES = 4 << 30  # that a child may allocate: 100 megapixels, decoded and converted, take about 2 GiB
_CHUNK_BYTES = 32 << 20  # of images that are read before they are checked

Checked = Stored | Refused
Check = Callable[[Buffer, int], Checked]  # of the bytes of an image and its position among the samples
Image = tuple[int, Buffer]


def check_isolated(samples: pa.Table, check: Check) -> Iterator[tuple[Image, Checked]]:
    """Yields ((position, stored bytes), outcome) of each row of an index table, as `gather` and `check` would.

    An image on which a child dies is tried once more, alone in a child of its own, and refused if that dies, too. The
    outcomes are those of `check` otherwise.
    """
    for positions in _chunks(samples["length"].to_pylist()):
        # The threads that read have ended before a child is forked: a lock that one held would never be released.
        images = [(positions[row], data) for row, data in gather(samples.take(pa.array(positions)))]
        yield from _check_all(images, check, IMAGE_SECONDS)


def limit_time(seconds: int) -> None:
    """Has the system end this process after `seconds`, whatever code it runs then; 0 takes that back."""
    signal.alarm(seconds)


def _chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    total = 0
    for position, length in enumerate(lengths):
        if chunk and total + length > _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(position)
        total += length
    if chunk:
        yield chunk


def _check_all(images: Sequence[Image], check: Check, seconds: int) -> Iterator[tuple[Image, Checked]]:
    while images:
        outcomes, _ = _in_child(images, check, seconds)
        yield from zip(images, outcomes, strict=False)
        images = images[len(outcomes) :]
        if images:
            outcomes, status = _in_child(images[:1], check, seconds)
            yield images[0], outcomes[0] if outcomes else _refused(images[0][1], status, seconds)
            images = images[1:]


def _refused(data: Buffer, status: int, seconds: int) -> Refused:
    """Returns the refusal of an image on which a process died. status: as of `Process.exitcode`."""
    if -status == signal.SIGALRM:
        reason = f"too slow: not decoded within {seconds} s"
    else:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        reason = f"crash: the process that decodes it ends with {how}"
    return Refused(reason, hashlib.sha256(data).hexdigest())


def _in_child(images: Sequence[Image], check: Check, seconds: int) -> tuple[list[Checked], int]:
    """Returns (outcomes of the first images, exit code of the child); of all images unless the child died."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")  # the child has the images, and all that is loaded, without a copy
    child = fork.Process(target=_run_child, args=(images, check, seconds, sender), daemon=True)
    with thread_warnings("ignore"):  # Python 3.12 warns of forks beside threads; the child uses none of their locks
        child.start()
    sender.close()
    outcomes: list[Checked] = []
    with receiver, suppress(EOFError, OSError):  # raised when the child has died
        while len(outcomes) < len(images):
            image, is_unchanged = receiver.recv()
            outcomes.append(_with_data(image, images[len(outcomes)][1]) if is_unchanged else image)
    if len(outcomes) == len(images):
        child.kill()  # it has nothing left to do but to end
    child.join()
    return outcomes, child.exitcode or 0


def _with_data(image: Stored, data: Buffer) -> Stored:
    return Stored(data, image.height, image.width, image.source_sha256, image.repair, image.facts)


def _run_child(images: Sequence[Image], check: Check, seconds: int, sender: Connection) -> None:
    faulthandler.disable()  # the parent tells of the crash, in one line
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _limit_memory()
    for position, data in images:
        limit_time(seconds)
        image = check(data, position)
        limit_time(0)
        is_unchanged = isinstance(image, Stored) and image.data is data
        sender.send((_with_data(image, b"") if is_unchanged else image, is_unchanged))  # type: ignore[arg-type]


def _limit_memory() -> None:
    """Makes allocations fail before the system runs out of memory and ends a process of its choice."""
    with suppress(OSError, ValueError):  # no Linux, or less is allowed already
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + _MOST_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
