"""Clients of S3 and Google Cloud Storage: endpoint, region and credentials of a URI."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pyarrow import PythonFile, fs

from pipeline.core.errors import StorageError

REQUESTS_IN_FLIGHT = 64
READ_TIMEOUT_SECONDS = 20
# Where users set credentials, by scheme.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
}
_ENDPOINT_VARIABLES = "AWS_ENDPOINT_URL, GOOGLE_BASE_URL, or endpoint_override in the URI"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")
_ENDPOINT = re.compile(r"https?://[^\s/]+(/\S*)?")


def client_and_key(uri: str) -> tuple[Any, str]:
    """Returns obstore's client for the bucket of a URI, and the key in it. Clients are kept.

    Raises StorageError for what can be no bucket or endpoint, and for credentials that can't be read.
    """
    from obstore.exceptions import BaseError

    place = _place(uri)
    if not _BUCKET.fullmatch(place.bucket):
        raise StorageError(f"{uri}: {place.bucket!r} can be no bucket's name; give {place.scheme}://BUCKET/KEY")
    if place.endpoint and not _ENDPOINT.fullmatch(place.endpoint):
        raise StorageError(f"{uri}: its endpoint isn't http(s)://HOST[:PORT]; correct it ({_ENDPOINT_VARIABLES})")
    try:
        return _store(place.scheme, place.bucket, place.endpoint, place.region), place.key
    except Exception as error:
        if not (isinstance(error, BaseError) or type(error).__module__.startswith("botocore.")):
            raise
        reason = " ".join(str(error).split("Debug source")[0].split())
        raise StorageError(
            f"{uri.split('?')[0]}: its credentials can't be used ({reason.rstrip(' .:')}); correct them "
            f"({CREDENTIALS[place.scheme]})"
        ) from error


def bucket_of(uri: str) -> tuple[str, str, str | None]:
    """Returns scheme, bucket and endpoint of a URI: what one client is for."""
    place = _place(uri)
    return place.scheme, place.bucket, place.endpoint


def sends_unsigned(uri: str) -> bool:
    """Returns whether no credentials were found for the bucket of a URI, so that only public data can be read."""
    return bucket_of(uri) in _unsigned


def forget_clients() -> None:
    """Closes all clients, for a process whose endpoint or credentials change."""
    _store.cache_clear()
    _unsigned.clear()


_unsigned: set[tuple[str, str, str | None]] = set()


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


# Kept, because a client has a pool of connections. The endpoint is part of the key: tests change it.
@lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, endpoint: str | None, region: str | None) -> Any:
    return _gs_store(bucket, endpoint) if scheme == "gs" else _s3_store(bucket, endpoint, region)


def _gs_store(bucket: str, endpoint: str | None) -> Any:
    # obstore finds the credentials by Google's usual rules: variables, application default, account of the machine.
    from obstore.store import GCSStore

    options = _options(endpoint)
    if endpoint:
        options["base_url"] = endpoint
    return GCSStore(bucket, **options)


def _s3_store(bucket: str, endpoint: str | None, region: str | None) -> Any:
    # boto3 finds the credentials by AWS's usual rules: variables, profile, role of the machine.
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session, place_endpoint = boto3.Session(), endpoint
    profile = session._session.get_scoped_config()
    endpoint = endpoint or profile.get("endpoint_url")
    options = {**_options(endpoint), "region": region or session.region_name or "us-east-1"}
    if endpoint:
        options["endpoint"] = endpoint
    if session.get_credentials() is None:
        options["skip_signature"] = True  # public data needs no account
        _unsigned.add(("s3", bucket, place_endpoint))
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


def google_filesystem() -> fs.FileSystem:
    """Returns a pyarrow file system for Google Cloud Storage, through obstore, for Ray Train and Parquet."""
    from obstore.fsspec import FsspecStore

    endpoint = os.environ.get("GOOGLE_BASE_URL")
    allowed: Any = {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    return fs.PyFileSystem(_Handler(FsspecStore("gs", client_options=allowed)))


class _Handler(fs.FSSpecHandler):  # type: ignore[misc]
    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return PythonFile(_BytesWriter(self.fs.open(path, "wb")), mode="w")


class _BytesWriter:
    """A file that converts what is written to bytes, because obstore's refuses pyarrow's buffers."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        return int(self._file.write(bytes(data)))
