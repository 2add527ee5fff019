"""Read, write and list files on local disks and objects in S3 and Google Cloud Storage, with one set of functions.

URIs and bytes come in. Bytes, listings, claims and leases go out: a claim says whose a folder is, a lease which of
several processes may write to it now.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.storage.files import (
        Entry,
        absolute,
        exists,
        join,
        list_entries,
        list_files,
        read_bytes,
        read_json,
        read_range,
        write_bytes,
        write_json,
        write_once,
    )
    from pipeline.storage.lease import Lease, hold_lease
    from pipeline.storage.places import claim_folder
    from pipeline.storage.ranges import Range, coalesce
    from pipeline.storage.request_counts import RequestCounts, requests_sent

__all__ = [
    "Entry",
    "Lease",
    "Range",
    "RequestCounts",
    "absolute",
    "claim_folder",
    "coalesce",
    "exists",
    "hold_lease",
    "join",
    "list_entries",
    "list_files",
    "read_bytes",
    "read_json",
    "read_range",
    "requests_sent",
    "write_bytes",
    "write_json",
    "write_once",
]
__getattr__ = lazy(
    __name__,
    {
        "files": (
            "Entry",
            "absolute",
            "exists",
            "join",
            "list_entries",
            "list_files",
            "read_bytes",
            "read_json",
            "read_range",
            "write_bytes",
            "write_json",
            "write_once",
        ),
        "lease": ("Lease", "hold_lease"),
        "places": ("claim_folder",),
        "request_counts": ("RequestCounts", "requests_sent"),
        "ranges": ("Range", "coalesce"),
    },
)
