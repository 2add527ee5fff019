"""The stamps of a source's objects: length, time of change and ETag, which tell without a read whether one changed.

A file on a disk has a time, an object of a store has an ETag. A time that is younger than CLOCK_TICK_NS when the source
is listed says nothing: the file may be written once more within the same tick of the file system's clock.
"""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.storage import files

CLOCK_TICK_NS = 2_000_000_000  # of the coarsest file systems (FAT)

# object: absolute URI; name: relative to the source, "" for the source itself; modified_ns: null if it says nothing.
STAMPS_SCHEMA = pa.schema(
    [
        ("object", pa.string()),
        ("name", pa.string()),
        ("modified_ns", pa.int64()),
        ("etag", pa.string()),
    ]
)


def stamps_of(uri: str, entries: Sequence[files.Entry], listed_ns: int | None = None) -> pa.Table:
    """Returns a table of STAMPS_SCHEMA for the files of a source, or for the archive that it is.

    listed_ns: nanoseconds since the epoch at which the listing began; None for now.
    """
    listed_ns = time.time_ns() if listed_ns is None else listed_ns
    modified = np.fromiter((entry.modified_ns for entry in entries), dtype=np.int64, count=len(entries))
    has_etag = np.fromiter((bool(entry.etag) for entry in entries), dtype=bool, count=len(entries))
    is_young = (modified > listed_ns - CLOCK_TICK_NS) & ~has_etag
    objects = (files.join(uri, entry.name) if entry.name else uri for entry in entries)
    columns = [
        pa.array(objects, pa.string(), size=len(entries)),
        pa.array((entry.name for entry in entries), pa.string(), size=len(entries)),
        pa.array(modified, pa.int64(), mask=is_young),
        pa.array((entry.etag for entry in entries), pa.string(), size=len(entries)),
    ]
    return pa.Table.from_arrays(columns, schema=STAMPS_SCHEMA)
