"""The bytes of planned rows, by many reads at a time, in whatever order they arrive."""

import queue
import threading
from collections.abc import Iterator

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.plan import Read, plan_reads
from pipeline.storage import files

REMOTE_READERS, LOCAL_READERS = 12, 4


def gather(samples: pa.Table) -> Iterator[tuple[int, memoryview]]:
    """Yields (position in `samples`, stored bytes) of every row of an index table that is to be read, once each.

    What it yields are views of what was read, not copies.

    At most twice as many reads are held as there are readers, each of at most `plan.READ_BYTES` or one image.
    Raises SourceError if an object has changed since it was indexed, StorageError if the storage stays away.
    """
    reads = list(plan_reads(samples))
    if not reads:
        return
    num_readers = min(len(reads), LOCAL_READERS if files.is_local(reads[0].object) else REMOTE_READERS)
    offsets, lengths = samples["offset"].to_pylist(), samples["length"].to_pylist()
    todo = iter(reads)
    lock, ended = threading.Lock(), threading.Event()
    arrived: queue.Queue[tuple[Read, memoryview] | BaseException] = queue.Queue(maxsize=num_readers)

    def read_on() -> None:
        while not ended.is_set():
            with lock:
                read = next(todo, None)
            if read is None:
                return
            try:
                arrived.put((read, files.read_range(read.object, read.offset, read.length)))
            except BaseException as error:  # raised again by the one who waits for it
                arrived.put(error)
                return

    threads = [threading.Thread(target=read_on, daemon=True) for _ in range(num_readers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(len(reads)):
            got = arrived.get()
            if isinstance(got, FileNotFoundError):
                raise SourceError(f"{got}: is gone since the source was indexed; run the same command again") from got
            if isinstance(got, BaseException):
                raise got
            read, data = got
            for row in read.rows:
                start = offsets[row] - read.offset
                yield row, data[start : start + lengths[row]]
    finally:
        ended.set()
        while any(thread.is_alive() for thread in threads):  # they may wait for a place in the queue
            try:
                arrived.get(timeout=0.05)
            except queue.Empty:
                continue
