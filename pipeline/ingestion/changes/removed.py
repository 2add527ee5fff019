"""What was removed for good from the versions in a folder, so that no later ingest brings it back.

`removed.json` lies in the folder that the versions lie in. It holds SHA-256 sums of source files, from which no image
and no name can be recovered.
"""

import json
from collections.abc import Iterable

from pipeline.core.errors import StorageError
from pipeline.storage import files

REMOVED_NAME = "removed.json"
_SHA256_BYTES = 32


def removed_sources(folder: str) -> frozenset[bytes]:
    """Returns the SHA-256 (32 bytes) of each source file that was removed for good from the versions in `folder`.

    Raises StorageError if `removed.json` is damaged.
    """
    place = files.join(folder, REMOVED_NAME)
    try:
        values = files.read_json(place)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    try:
        digests = [bytes.fromhex(each) for each in values["source_sha256"]]
    except (KeyError, TypeError, ValueError):
        digests = [b""]
    if any(len(each) != _SHA256_BYTES for each in digests):
        raise StorageError(
            f"{place}: damaged: it holds no list source_sha256 of SHA-256 sums in hexadecimal; restore the file: "
            "without it, images that were removed would come back"
        )
    return frozenset(digests)


def removed_json(digests: Iterable[bytes]) -> bytes:
    """Returns the content of `removed.json` for the SHA-256 of source files."""
    return json.dumps({"source_sha256": sorted(each.hex() for each in digests)}, indent=1).encode() + b"\n"
