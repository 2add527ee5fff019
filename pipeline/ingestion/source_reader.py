"""Reads the stored bytes of rows from a source: many reads at a time, in the order in which they arrive."""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.ingestion.plan import Read, plan_reads
from pipeline.storage import files
from pipeline.storage.parallel_reads import read_ahead

REMOTE_READERS, LOCAL_READERS = 12, 4


# Errors that say that this one file can't be read, whoever tries and whenever: permission, a bad block of the disk.
_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENXIO, errno.ELOOP)


def gather(samples: pa.Table, unreadable: dict[int, str] | None = None) -> Iterator[tuple[int, memoryview]]:
    """Yields (position in `samples`, stored bytes) of each row of an index table, once, as the reads arrive.

    Rows that are empty or too large to be stored are left out. unreadable: receives the reason, by position, of rows
    whose local file the system doesn't read; without it, OSError is raised for the first one.

    The bytes are views of the reads, not copies. At most twice as many reads are held as there are readers, each
    of at most `plan.READ_BYTES` or one image. Raises SourceError if a file has gone since it was indexed, OSError if it
    has shrunk, and StorageError if the storage doesn't answer.
    """
    reads = list(plan_reads(samples))
    if not reads:
        return
    num_readers = min(len(reads), LOCAL_READERS if files.is_local(reads[0].object) else REMOTE_READERS)
    offsets, lengths = samples["offset"].to_pylist(), samples["length"].to_pylist()
    pool = ThreadPoolExecutor(num_readers, thread_name_prefix="gather")
    read_one = _read if unreadable is None else _read_or_reason
    try:
        for read, data in read_ahead(pool, read_one, reads, in_order=False, max_pending=2 * num_readers):
            if isinstance(data, str):
                assert unreadable is not None
                unreadable |= dict.fromkeys(read.rows, data)
                continue
            for row in read.rows:
                start = offsets[row] - read.offset
                yield row, data[start : start + lengths[row]]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(read: Read) -> memoryview:
    try:
        return files.read_range(read.object, read.offset, read.length)
    except FileNotFoundError as error:
        raise SourceError(f"{error}: is gone since the source was indexed; run the same command again") from error


def _read_or_reason(read: Read) -> memoryview | str:
    try:
        return _read(read)
    except OSError as error:
        if files.is_local(read.object) and error.errno in _OF_THE_FILE:
            return f"file not readable: {error.strerror}"
        raise
