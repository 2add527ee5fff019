"""Requests to S3 and Google Cloud Storage: one call here is one request, retried, limited and counted, so that a plan
can be held against it.

obstore (Rust) makes the requests; its own retries are off. What is tried again, and for how long, is said here:
network errors, timeouts, cut answers, 429 and 5xx, with full jitter (Brooker, "Exponential Backoff And Jitter", AWS
2015), until RETRY_SECONDS have passed. Each slow-down halves the number of requests in flight, each success adds
a little (additive increase, multiplicative decrease).
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from pyarrow import PythonFile, fs

from pipeline.core.errors import StorageError, UnavailableError

T = TypeVar("T")
RETRY_SECONDS = 180.0
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 10.0
REQUESTS_IN_FLIGHT = 64
READ_TIMEOUT_SECONDS = 20
LIST_PAGE_KEYS = 1000


@dataclass
class RequestCounts:
    """How many requests were sent (retries included, and counted once more as such), and bytes moved."""

    get: int = 0
    put: int = 0
    list: int = 0
    head: int = 0
    delete: int = 0
    retried: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def plus(self, other: "RequestCounts", sign: int = 1) -> "RequestCounts":
        """Returns the sum of both, or with sign -1 the difference."""
        return RequestCounts(**{f.name: getattr(self, f.name) + sign * getattr(other, f.name) for f in fields(self)})

    @property
    def total(self) -> int:
        """Requests of all kinds."""
        return self.get + self.put + self.list + self.head + self.delete

    def __str__(self) -> str:
        kinds = [f"{getattr(self, name):,} {name.upper()}" for name in ("get", "put", "list", "head", "delete")]
        return ", ".join(kind for kind in kinds if not kind.startswith("0 ")) + f" ({self.retried:,} retries)"


_sent = RequestCounts()
_sent_lock = threading.Lock()


def _count(**amounts: int) -> None:
    with _sent_lock:
        for name, amount in amounts.items():
            setattr(_sent, name, getattr(_sent, name) + amount)


def requests_sent() -> RequestCounts:
    """Returns what this process has sent so far."""
    with _sent_lock:
        return _sent.plus(RequestCounts())


class AdaptiveLimit:
    """At most so many requests in flight: halved by each slow-down, raised by one for each `limit` successes."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self._active = 0
        self._condition = threading.Condition()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Waits for a place, and gives it back."""
        with self._condition:
            self._condition.wait_for(lambda: self._active < max(1, int(self.limit)))
            self._active += 1
        try:
            yield
        finally:
            with self._condition:
                self._active -= 1
                self._condition.notify()

    def succeeded(self) -> None:
        """Called after an answer."""
        with self._condition:
            self.limit = min(self.most, self.limit + 1 / self.limit)

    def slowed(self) -> None:
        """Called after 503, 429 and the like."""
        with self._condition:
            self.limit = max(1.0, self.limit / 2)


_limit = AdaptiveLimit(REQUESTS_IN_FLIGHT)


class ConflictError(Exception):
    """A conditional write met another object than it expected. Never leaves the storage modules.

    tries: how often the request had been sent before, to no answer.
    """

    def __init__(self, tries: int) -> None:
        self.tries = tries


@dataclass(frozen=True)
class _Place:
    scheme: str
    bucket: str
    key: str
    endpoint: str | None
    region: str | None


def _place(uri: str) -> _Place:
    parts = urlsplit(uri)
    if parts.scheme == "gs":
        return _Place("gs", parts.netloc, parts.path.strip("/"), os.environ.get("GOOGLE_BASE_URL"), None)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" in query:
        endpoint = query["endpoint_override"]
        endpoint = endpoint if "://" in endpoint else f"{query.get('scheme', 'https')}://{endpoint}"
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _Place("s3", parts.netloc, parts.path.strip("/"), endpoint, region)


@lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, endpoint: str | None, region: str | None) -> Any:
    return _gs_store(bucket, endpoint) if scheme == "gs" else _s3_store(bucket, endpoint, region)


def _gs_store(bucket: str, endpoint: str | None) -> Any:
    # obstore finds the credentials, by Google's rules: variables, the application's default, the machine's account.
    from obstore.store import GCSStore

    options = _options(endpoint)
    if endpoint:
        options["base_url"] = endpoint
    return GCSStore(bucket, **options)


def google_filesystem() -> fs.FileSystem:
    """Returns pyarrow's file system of Google Cloud Storage, by obstore, for Ray Train and Parquet."""
    from obstore.fsspec import FsspecStore

    endpoint = os.environ.get("GOOGLE_BASE_URL")
    allowed: Any = {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    return fs.PyFileSystem(_Handler(FsspecStore("gs", client_options=allowed)))


class _Handler(fs.FSSpecHandler):  # type: ignore[misc]
    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return PythonFile(_BytesWriter(self.fs.open(path, "wb")), mode="w")


class _BytesWriter:
    """A file that is written bytes: obstore's refuses pyarrow's buffers."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        return int(self._file.write(bytes(data)))


def _s3_store(bucket: str, endpoint: str | None, region: str | None) -> Any:
    # boto3 finds the credentials, by the rules that everyone knows: variables, profile, role of the machine.
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session = boto3.Session()
    profile = session._session.get_scoped_config()
    endpoint = endpoint or profile.get("endpoint_url")
    options = {**_options(endpoint), "region": region or session.region_name or "us-east-1"}
    if endpoint:
        options["endpoint"] = endpoint
    if session.get_credentials() is None:
        options["skip_signature"] = True  # public data needs no account
    else:
        options["credential_provider"] = Boto3CredentialProvider(session)
    return S3Store(bucket, **options)


def _options(endpoint: str | None) -> dict[str, Any]:
    once = timedelta(seconds=1)
    return {
        "client_options": {
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=READ_TIMEOUT_SECONDS),
            "timeout": timedelta(minutes=15),  # of one request, a large PUT over a slow line
            "pool_max_idle_per_host": str(REQUESTS_IN_FLIGHT),
        },
        "retry_config": {
            "max_retries": 0,
            "retry_timeout": once,
            "backoff": {"init_backoff": once, "max_backoff": once, "base": 2},
        },
    }


def _request(kind: str, uri: str, call: Callable[[Any, str], T]) -> T:
    from obstore import exceptions

    place = _place(uri)
    store = _store(place.scheme, place.bucket, place.endpoint, place.region)
    start, tries = time.monotonic(), 0
    while True:
        with _limit.request():
            _count(**{kind: 1, "retried": int(tries > 0)})
            try:
                answer = call(store, place.key)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                raise ConflictError(tries) from error
            except FileNotFoundError as error:
                if kind == "put":
                    raise StorageError(_one_line(uri, error)) from error
                raise
            except (exceptions.BaseError, ValueError) as error:
                if not _may_pass(error):
                    raise StorageError(_one_line(uri, error)) from error
                if time.monotonic() - start > RETRY_SECONDS:
                    raise UnavailableError(_one_line(uri, error)) from error
                slow = _status(error) in (429, 503)
            else:
                _limit.succeeded()
                return answer
        if slow:
            _limit.slowed()
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**tries)
        time.sleep(random.uniform(0, longest))
        tries += 1


def _status(error: Exception) -> int | None:
    match = re.search(r"status code: (\d{3})", str(error))
    return int(match.group(1)) if match else None


def _may_pass(error: Exception) -> bool:
    from obstore import exceptions

    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, ValueError)):
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _one_line(uri: str, error: Exception) -> str:
    text = " ".join(str(error).split("Debug source")[0].split())
    text = re.sub(r"https?://\S+ in [\d.]+\S+ - ", "", text)  # no endpoint in messages and logs
    code = re.search(r"<Code>(\w+)</Code>", text)
    reason = f"{_status(error)} {code.group(1) if code else ''}".strip() if _status(error) else text[:200]
    where = "the GOOGLE_... variables or the account" if uri.startswith("gs:") else "the AWS_... variables or profile"
    return f"{uri.split('?')[0]}: the storage answers {reason}; check bucket, endpoint and credentials ({where})"


# --- what can be asked -------------------------------------------------------------------------------------------


def read_range(uri: str, offset: int, length: int) -> memoryview:
    """Returns `length` bytes at `offset`. Raises FileNotFoundError, or StorageError if it can't be had in full."""
    import obstore

    if not length:
        return memoryview(b"")
    answer = _request("get", uri, lambda store, key: obstore.get_range(store, key, start=offset, length=length))
    data = memoryview(answer)
    if len(data) != length:
        raise StorageError(f"{uri}: {len(data)} bytes at {offset}, {length} were expected; the object has changed")
    _count(bytes_read=length)
    return data


def read(uri: str) -> tuple[bytes, str]:
    """Returns an object and its version: the ETag in S3, the generation in Google's. Raises FileNotFoundError."""
    import obstore

    def get(store: Any, key: str) -> tuple[bytes, str]:
        result = obstore.get(store, key)
        return bytes(result.bytes()), str(result.meta[_version_field(uri)])  # type: ignore[literal-required]

    data, version = _request("get", uri, get)
    _count(bytes_read=len(data))
    return data, version


def create(uri: str, data: Any) -> str:
    """Writes an object that mustn't be there yet, as `write` does. Raises ConflictError if there is one."""
    return _put(uri, data, "create")


def replace(uri: str, data: Any, version: str) -> str:
    """Writes an object that must be of this version, as `write` does. Raises ConflictError if it isn't."""
    return _put(uri, data, {_version_field(uri): version})


def write(uri: str, data: Any) -> str:
    """Writes an object in one request and returns its version."""
    return _put(uri, data, None)


def _version_field(uri: str) -> str:
    return "version" if uri.startswith("gs:") else "e_tag"


def _put(uri: str, data: Any, mode: Any) -> str:
    import obstore

    def put(store: Any, key: str) -> str:
        result = obstore.put(store, key, data, mode=mode, use_multipart=False)
        return str(result[_version_field(uri)])  # type: ignore[literal-required]

    try:
        version = _request("put", uri, put)
    except ConflictError as conflict:
        # A first try may have arrived although its answer was lost: then the object is ours.
        if conflict.tries:
            found, version = read(uri)
            if found == bytes(data):
                return version
        raise
    _count(bytes_written=len(data))
    return version


def head(uri: str) -> dict[str, Any]:
    """Returns {"size", "last_modified", "e_tag"} of an object. Raises FileNotFoundError."""
    import obstore

    answer = _request("head", uri, obstore.head)
    return dict(answer)


def list_below(uri: str) -> list[dict[str, Any]]:
    """Returns {"path", "size", "last_modified"} of every object below a prefix, page after page."""
    import obstore

    def pages(store: Any, key: str) -> list[dict[str, Any]]:
        return [dict(entry) for page in obstore.list(store, key or None, chunk_size=LIST_PAGE_KEYS) for entry in page]

    found = _request("list", uri, pages)
    _count(list=len(found) // LIST_PAGE_KEYS)
    return found


def list_level(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns (prefixes, objects) right below a prefix."""
    import obstore

    def level(store: Any, key: str) -> Any:
        return obstore.list_with_delimiter(store, key or None)

    answer = _request("list", uri, level)
    objects = [dict(entry) for entry in answer["objects"]]
    _count(list=(len(objects) + len(answer["common_prefixes"])) // LIST_PAGE_KEYS)
    return list(answer["common_prefixes"]), objects


def delete(uri: str, keys: list[str]) -> None:
    """Removes objects of the URI's bucket, up to 1,000 a request, in Google's one by one; what isn't there is fine."""
    import obstore

    if uri.startswith("gs:"):
        for key in keys:
            with suppress(FileNotFoundError):
                _request("delete", uri, lambda store, _, key=key: obstore.delete(store, key))  # type: ignore[misc]
        return
    for start in range(0, len(keys), LIST_PAGE_KEYS):
        some = keys[start : start + LIST_PAGE_KEYS]
        _request("delete", uri, lambda store, _, some=some: obstore.delete(store, some))  # type: ignore[misc]
