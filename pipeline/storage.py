"""Where bytes are: a path or a URI (`s3://bucket/key`) resolved to one of pyarrow's file systems.

Credentials, region and endpoint come from the standard AWS variables, a profile or the instance; a URI may
carry `?endpoint_override=host:port&scheme=http` and never a secret.
"""

import hashlib
import os
import posixpath
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from pipeline.errors import PipelineError


def absolute(uri: str) -> str:
    """Returns `uri` in a form that means the same in every process of the cluster.

    Raises PipelineError if the URI carries credentials or a scheme that isn't understood.
    """
    if "://" not in uri:
        return str(Path(uri).expanduser().resolve())
    parts = urlsplit(uri)
    if "@" in parts.netloc or "secret_key" in parts.query:
        raise PipelineError(
            f"{parts.scheme}://...: a URI must not carry credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE instead"
        )
    if parts.scheme == "file":
        return str(Path(parts.path).resolve())
    if parts.scheme not in ("s3", "gs", "gcs", "hdfs", "abfs", "abfss"):
        raise PipelineError(f"{uri}: unknown scheme {parts.scheme!r}; use a path, s3://bucket/key or gs://bucket/key")
    return uri


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of an absolute `uri` and the path in it."""
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine."""
    return "://" not in uri


def join(uri: str, *names: str) -> str:
    """Returns the URI of `names` below `uri`; a query stays at the end."""
    if "?" in uri:
        base, query = uri.split("?", 1)
        return f"{posixpath.join(base, *names)}?{query}"
    return posixpath.join(uri, *names)


def basename(uri: str) -> str:
    """The last part of the path, without a query."""
    return posixpath.basename(uri.split("?", 1)[0].rstrip("/"))


def stat(uri: str) -> fs.FileInfo:
    """Returns type, size and modification time; the type is `NotFound` where there is nothing."""
    filesystem, path = open_filesystem(uri)
    return filesystem.get_file_info(path)


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    return stat(uri).type != fs.FileType.NotFound


def list_files(uri: str) -> list[tuple[str, int]]:
    """Returns (name relative to `uri`, size in bytes) of every file below it, sorted by name."""
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    return sorted((info.path.removeprefix(prefix), info.size) for info in infos if info.type == fs.FileType.File)


def list_directories(uri: str) -> list[str]:
    """Returns the names of the directories right below `uri`, sorted."""
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def fingerprint(uri: str) -> str:
    """Returns a hash that changes when the file, or a file below the directory, does: names, sizes and times."""
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    below = (
        filesystem.get_file_info(fs.FileSelector(path, recursive=True)) if info.type == fs.FileType.Directory else []
    )
    lines = sorted(f"{i.path} {i.size} {i.mtime_ns}" for i in [info, *below] if i.type != fs.FileType.Directory)
    return hashlib.sha256("\n".join([uri, *lines]).encode()).hexdigest()


def read_bytes(uri: str) -> bytes:
    """Returns the whole content of one file."""
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Writes `data` so that a reader sees the old file or the whole new one: rename on disks, one PUT on stores."""
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_once(uri: str, data: bytes) -> bool:
    """Writes `data` unless something is there already; of any number of racing writers one gets True.

    On disks by a hard link (which never overwrites), on S3 by a conditional PUT (`If-None-Match: *`).
    """
    if uri.startswith("s3://"):
        return _put_once(uri, data)
    if not is_local(uri):
        raise PipelineError(f"{uri}: publishing needs conditional writes, known here for paths and s3:// only")
    temporary = f"{uri}.{uuid.uuid4().hex[:8]}.tmp"
    write_bytes(temporary, data)
    try:
        os.link(temporary, uri)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _put_once(uri: str, data: bytes) -> bool:
    # pyarrow has no conditional PUT; boto3 reads the same AWS variables and profiles.
    from urllib.parse import parse_qs

    import boto3
    from botocore.exceptions import ClientError

    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    endpoint = None
    if "endpoint_override" in query:
        endpoint = f"{query.get('scheme', ['https'])[0]}://{query['endpoint_override'][0]}"
    region = query.get("region", [os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")])[0]
    client = boto3.client("s3", endpoint_url=endpoint, region_name=region or ("us-east-1" if endpoint else None))
    try:
        client.put_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"), Body=data, IfNoneMatch="*")
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
            return False
        raise
    return True


def delete_tree(uri: str) -> None:
    """Removes a directory and what is below it; nothing happens where there is none."""
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)
