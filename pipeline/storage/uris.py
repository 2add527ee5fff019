"""Paths and URIs: `/a/path`, `s3://bucket/key`, `gs://bucket/key`; a query (`?region=...`) stays at the end.

Credentials, region and endpoint come from the standard AWS or Google variables, a profile or the machine's role. An S3
URI may carry `?endpoint_override=host:port&scheme=http` and never a secret.
"""

import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from pipeline.core.errors import PipelineError
from pipeline.storage.file_names import escaped, printable
from pipeline.storage.store_clients import google_filesystem

_SCHEMES = ("s3", "gs", "hdfs", "abfs", "abfss")


def absolute(uri: str) -> str:
    """Returns the absolute form of a path or URI, which is valid in every process of the cluster.

    Raises PipelineError if the URI carries credentials or a scheme that isn't understood.
    """
    if "://" not in uri:
        return _absolute_path(uri)
    parts = urlsplit(uri)
    if "@" in parts.netloc or "secret_key" in parts.query:
        raise PipelineError(
            f"{parts.scheme}://...: a URI must not carry credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE instead"
        )
    if parts.scheme == "file":
        return _absolute_path(parts.path)
    if parts.scheme not in _SCHEMES:
        raise PipelineError(f"{uri}: unknown scheme {parts.scheme!r}; use a path, s3://bucket/key or gs://bucket/key")
    if not parts.netloc and parts.scheme in ("s3", "gs"):
        raise PipelineError(f"{uri}: names no bucket; use {parts.scheme}://BUCKET/KEY")
    return uri


def _absolute_path(path: str) -> str:
    if "\0" in path:
        raise PipelineError(f"{path!r}: a path can't hold a zero byte; give another path")
    if not path.isascii() and (shown := printable(escaped(path))) != path:
        raise PipelineError(f"{shown}: the path isn't valid UTF-8; rename it, or give a symbolic link to it")
    try:
        return str(Path(path).expanduser().resolve())
    except RuntimeError as error:  # no such user, or a user without a home folder; or a circle of links
        raise PipelineError(f"{path}: {error}; give an absolute path") from error


def is_local(uri: str) -> bool:
    """Returns whether `uri` is a path on this machine."""
    return "://" not in uri


def in_store(uri: str) -> bool:
    """Returns whether `uri` is in object storage: S3, a store with its interface, or Google Cloud Storage."""
    return uri.startswith(("s3://", "gs://"))


def join(uri: str, *names: str) -> str:
    """Returns the URI of a file below `uri`; names: folders and file. A query stays at the end."""
    if "?" in uri and not is_local(uri):  # a folder's name may hold one
        base, query = uri.split("?", 1)
        return f"{posixpath.join(base, *names)}?{query}"
    return posixpath.join(uri, *names)


def resolve(uri: str, place: str) -> str:
    """Returns the URI of a file that is named from the folder `uri`: "a/b", "../a/b", a URI or an absolute path."""
    if "://" in place or place.startswith("/"):
        return place
    if not place.startswith("../"):
        return join(uri, place)
    if is_local(uri):
        return posixpath.normpath(posixpath.join(uri, place))
    scheme, rest = uri.split("://", 1)
    path, mark, query = rest.partition("?")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, place))}{mark}{query}"


def relative(uri: str, folder: str) -> str:
    """Returns the place that `resolve(folder, place)` turns into `uri`: "../name" where both are in one store or disk.

    uri, folder: absolute.
    """
    if is_local(uri) and is_local(folder):
        return posixpath.relpath(uri, folder)
    (one, _, one_query), (other, _, other_query) = uri.partition("?"), folder.partition("?")
    if urlsplit(one)[:2] != urlsplit(other)[:2] or one_query != other_query:
        return uri
    return posixpath.relpath(urlsplit(one).path or "/", urlsplit(other).path or "/")


def basename(uri: str) -> str:
    """Returns the last part of the path, without a query."""
    return posixpath.basename((uri if is_local(uri) else uri.split("?", 1)[0]).rstrip("/"))


def object_uri(uri: str, key: str) -> str:
    """Returns the URI of another key in the bucket of `uri`."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}/{key}" + (f"?{parts.query}" if parts.query else "")


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns pyarrow's file system for an absolute URI, and the path in it."""
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    if uri.startswith("gs://"):
        return google_filesystem(), uri.removeprefix("gs://").split("?")[0]
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path
