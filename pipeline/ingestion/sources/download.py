"""Downloads the published CIFAR-10 archive once, into a cache."""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress
from pipeline.ingestion.sources.cifar import BINARY_MD5, BINARY_URL

_TIMEOUT_SECONDS = 10
_log = logging.getLogger(__name__)


def cifar10_archive(cache: str, progress: Progress) -> str | None:
    """Returns the path of the binary archive below `cache`, or None if it can't be downloaded.

    Raises SourceError if the downloaded file has another MD5 than the published archive.
    """
    path = Path(cache) / "downloads" / BINARY_URL.rsplit("/", 1)[-1]
    if path.exists():
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    md5 = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(BINARY_URL, timeout=_TIMEOUT_SECONDS) as response, partial.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            while chunk := response.read(1 << 20):
                out.write(chunk)
                md5.update(chunk)
                done += len(chunk)
                progress("download", Bytes(done), Bytes(total), "CIFAR-10")
        if md5.hexdigest() != BINARY_MD5:
            raise SourceError(
                f"{BINARY_URL}: md5 is {md5.hexdigest()}, expected {BINARY_MD5}; try again, or give --data"
            )
        partial.replace(path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        _log.warning("CIFAR-10 can't be downloaded here (%s); using scikit-learn's digits instead", reason)
        return None
    finally:
        partial.unlink(missing_ok=True)
    return str(path)
