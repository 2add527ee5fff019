"""Where bytes are: a path, or a URI (`s3://bucket/key`, `gs://bucket/key`).

Files on disks and objects in S3 and Google Cloud Storage behave alike here: whole files appear at once, and two writers
can agree on who was first. Credentials, region and endpoint come from the standard AWS or Google variables, a profile
or the machine's role; an S3 URI may carry `?endpoint_override=host:port&scheme=http` and never a secret. What stores
are asked goes through `pipeline/storage/object_store.py`; other schemes are read through pyarrow.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import posixpath
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from pyarrow import fs

from pipeline.core.errors import PipelineError, StorageError
from pipeline.storage import object_store

LISTING_THREADS = 32
_WRITE_BYTES = 8 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_SCHEMES = ("s3", "gs", "hdfs", "abfs", "abfss")


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
    if parts.scheme not in _SCHEMES:
        raise PipelineError(f"{uri}: unknown scheme {parts.scheme!r}; use a path, s3://bucket/key or gs://bucket/key")
    return uri


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns pyarrow's file system of an absolute `uri` and the path in it."""
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    if uri.startswith("gs://"):
        return object_store.google_filesystem(), uri.removeprefix("gs://").split("?")[0]
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine."""
    return "://" not in uri


def in_store(uri: str) -> bool:
    """Whether `uri` lies in S3 (or what speaks like it) or in Google Cloud Storage."""
    return uri.startswith(("s3://", "gs://"))


def join(uri: str, *names: str) -> str:
    """Returns the URI of `names` below `uri`; a query stays at the end."""
    if "?" in uri:
        base, query = uri.split("?", 1)
        return f"{posixpath.join(base, *names)}?{query}"
    return posixpath.join(uri, *names)


def basename(uri: str) -> str:
    """The last part of the path, without a query."""
    return posixpath.basename(uri.split("?", 1)[0].rstrip("/"))


def _object_uri(uri: str, key: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}/{key}" + (f"?{parts.query}" if parts.query else "")


# --- looking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Entry:
    """A file below a directory: its name relative to it, bytes, and time of the last change."""

    name: str
    size: int
    modified_ns: int


def kind(uri: str) -> Literal["file", "directory", "missing"]:
    """What lies at `uri`; in a store a prefix of any key is a directory."""
    if in_store(uri):
        return _kind_in_store(uri)
    filesystem, path = open_filesystem(uri)
    found = filesystem.get_file_info(path).type
    if found == fs.FileType.Directory:
        return "directory"
    return "missing" if found == fs.FileType.NotFound else "file"


def _kind_in_store(uri: str) -> Literal["file", "directory", "missing"]:
    if urlsplit(uri).path.strip("/"):
        try:
            object_store.head(uri)
            return "file"
        except FileNotFoundError:
            pass
    prefixes, below = object_store.list_level(uri)
    return "directory" if prefixes or below else "missing"


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    return kind(uri) != "missing"


def size(uri: str) -> int:
    """Returns the bytes of a file. Raises FileNotFoundError."""
    if in_store(uri):
        return int(object_store.head(uri)["size"])
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(uri)
    return int(info.size)


def list_entries(uri: str) -> list[Entry]:
    """Returns every file below `uri`, sorted by name; a bucket is listed by many prefixes at a time."""
    if in_store(uri):
        return _list_store(uri)
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    files = (info for info in infos if info.type == fs.FileType.File)
    return sorted(Entry(info.path.removeprefix(prefix), info.size, info.mtime_ns or 0) for info in files)


def _list_store(uri: str) -> list[Entry]:
    # Pages of one listing come one after another, so a bucket of a million keys is listed by its folders.
    prefixes, found = object_store.list_level(uri)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for _ in range(2):
            if not prefixes or len(prefixes) >= LISTING_THREADS:
                break
            levels = list(pool.map(lambda prefix: object_store.list_level(_object_uri(uri, prefix)), prefixes))
            prefixes = [prefix for deeper, _ in levels for prefix in deeper]
            found += [entry for _, here in levels for entry in here]
        for below in pool.map(lambda prefix: object_store.list_below(_object_uri(uri, prefix)), prefixes):
            found += below
    start = len(urlsplit(uri).path.strip("/"))
    start += 1 if start else 0
    entries = [
        Entry(entry["path"][start:], int(entry["size"]), int(entry["last_modified"].timestamp() * 1e9))
        for entry in found
        if len(entry["path"]) > start
    ]
    # An empty object NAME/ stands for a folder, by some tools' custom, and obstore leaves out the slash: what is empty
    # and has files below it, or no suffix, is taken for one.
    folders = {folder for entry in entries for folder in _folders(entry.name)}
    return sorted(e for e in entries if e.size or (e.name not in folders and posixpath.splitext(e.name)[1]))


def _folders(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rsplit("/", 1)[0]
        yield name


def list_files(uri: str) -> list[tuple[str, int]]:
    """Returns (name relative to `uri`, size in bytes) of every file below it, sorted by name."""
    return [(entry.name, entry.size) for entry in list_entries(uri)]


def list_directories(uri: str) -> list[str]:
    """Returns the names of the directories right below `uri`, sorted."""
    if in_store(uri):
        return sorted(posixpath.basename(prefix.rstrip("/")) for prefix in object_store.list_level(uri)[0])
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def fingerprint(uri: str) -> str:
    """Returns a hash that changes when the file, or a file below the directory, does: names, sizes and times."""
    return fingerprint_of(uri, list_entries(uri) if kind(uri) == "directory" else [_entry(uri)])


def fingerprint_of(uri: str, entries: list[Entry]) -> str:
    """Returns the fingerprint of `uri`, whose files are listed already."""
    lines = [f"{entry.name} {entry.size} {entry.modified_ns}" for entry in sorted(entries)]
    return hashlib.sha256("\n".join([uri, *lines]).encode()).hexdigest()


def _entry(uri: str) -> Entry:
    if in_store(uri):
        found = object_store.head(uri)
        return Entry("", int(found["size"]), int(found["last_modified"].timestamp() * 1e9))
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    return Entry("", info.size or 0, info.mtime_ns or 0)


# --- reading -----------------------------------------------------------------------------------------------------


def read_bytes(uri: str) -> bytes:
    """Returns the whole content of one file."""
    if in_store(uri):
        return object_store.read(uri)[0]
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def read_json(uri: str) -> Any:
    """Returns the value of a JSON file. Raises FileNotFoundError, or ValueError if it isn't JSON."""
    return json.loads(read_bytes(uri))


def read_range(uri: str, offset: int, length: int) -> memoryview:
    """Returns `length` bytes at `offset`: of a store by one request, tried again. Raises OSError if there are fewer."""
    if in_store(uri):
        return object_store.read_range(uri, offset, length)
    data = _read_local(uri, offset, length) if is_local(uri) else _read_other(uri, offset, length)
    if len(data) != length:
        raise OSError(f"{uri}: {len(data)} bytes at {offset}, {length} were expected; the file has changed")
    return memoryview(data)


def _read_local(path: str, offset: int, length: int) -> bytes:
    found = os.stat(path)
    stream = _open_local(path, found.st_ino, found.st_mtime_ns)
    return os.pread(stream.fileno(), length, offset)


class MappedFile:
    """A local file as memory: what is read of it is not copied. Cut while it is read, it would end the process."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def read(self, offset: int, length: int) -> memoryview:
        """Returns `length` bytes at `offset`. Raises OSError if there are fewer."""
        data = self._view[offset : offset + length]
        if len(data) != length:
            raise OSError(f"{len(data)} bytes at {offset}, {length} were expected; the file is cut")
        return data

    def prefetch(self, offset: int, length: int) -> None:
        """Tells the system what is going to be read, so that it fetches what isn't in memory."""
        if hasattr(self._map, "madvise") and offset + length <= len(self._view):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, offset + length - start)


def map_file(path: str) -> MappedFile:
    """Returns a local file as memory; the last 256 stay open. Raises OSError."""
    found = os.stat(path)
    if not found.st_size:
        raise OSError(f"{path}: the file is empty")
    return _map_file(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _map_file(path: str, inode: int, size: int, modified_ns: int) -> MappedFile:
    return MappedFile(path)  # another file of this name is another file


@lru_cache(maxsize=64)
def _open_local(path: str, inode: int, modified_ns: int) -> IO[bytes]:
    # Another file of this name is another file. Closed when the cache and all readers have let go of it.
    return open(path, "rb", buffering=0)


def _read_other(uri: str, offset: int, length: int) -> bytes:
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read_at(length, offset))


# --- writing -----------------------------------------------------------------------------------------------------


def write_bytes(uri: str, data: Any) -> None:
    """Writes `data` so that a reader sees the old file or the whole new one: rename on disks, one PUT on stores."""
    if in_store(uri):
        object_store.write(uri, data)
        return
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    with _temporary_beside(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_json(uri: str, value: Any, pretty: bool = False) -> None:
    """Writes `value` as JSON, as `write_bytes` does. pretty: one value a line, for people; else on one line."""
    write_bytes(uri, json.dumps(value, indent=1).encode() + b"\n" if pretty else json.dumps(value).encode())


@contextmanager
def _temporary_beside(path: str) -> Iterator[str]:
    """Yields a path, whose file is moved to `path` when the block ends well, and removed if it doesn't.

    Raises StorageError if the disk is full.
    """
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"{path}: {error.strerror}: the disk is full; free some space and run the same command again"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_mapped(uri: str, memory: mmap.mmap, size: int) -> None:
    """Writes the first `size` bytes of an anonymous mapping, as `write_bytes` does.

    On disks past the page cache, where they know O_DIRECT, and flushed: copying a shard there costs more CPU than all
    else that is done to it (docs/log.md), and nobody reads it soon.
    """
    if not is_local(uri):
        with memoryview(memory) as view, view[:size] as data:
            write_bytes(uri, data)
        return
    with _temporary_beside(uri) as temporary:
        _write_direct(temporary, memory, size)


def _write_direct(path: str, memory: mmap.mmap, size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT
    try:
        file = os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file = os.open(path, flags, 0o666)  # this file system doesn't know it
    try:
        done, end = 0, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # whole blocks
        while done < end:
            with memoryview(memory) as view, view[done : min(end, done + _WRITE_BYTES)] as part:
                try:
                    done += os.write(file, part)
                except OSError as error:
                    now = fcntl.fcntl(file, fcntl.F_GETFL)
                    if error.errno != errno.EINVAL or not now & _O_DIRECT:
                        raise
                    fcntl.fcntl(file, fcntl.F_SETFL, now & ~_O_DIRECT)  # its blocks are larger than our pages
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)


def write_once(uri: str, data: bytes) -> bool:
    """Writes `data` unless something is there already; of any number of racing writers one gets True.

    On disks by a hard link (which never overwrites), in stores by a conditional PUT (S3: `If-None-Match: *`).
    """
    if in_store(uri):
        try:
            object_store.create(uri, data)
        except object_store.ConflictError:
            return False
        return True
    _check_conditional(uri)
    temporary = f"{uri}.{uuid.uuid4().hex[:8]}.tmp"
    write_bytes(temporary, data)
    try:
        os.link(temporary, uri)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def read_version(uri: str) -> tuple[bytes, str] | None:
    """Returns a file's content and version (for `replace`), or None where there is none."""
    _check_conditional(uri)
    try:
        if in_store(uri):
            return object_store.read(uri)
        data = Path(uri).read_bytes()
    except FileNotFoundError:
        return None
    return data, hashlib.sha256(data).hexdigest()


def replace(uri: str, data: bytes, version: str) -> str | None:
    """Writes `data` if the file still is of `version`; returns the new version, or None if it isn't.

    In stores by a conditional PUT (S3: `If-Match`, Google's: its generation), on disks under a lock (`flock`) on a file
    beside it.
    """
    if in_store(uri):
        try:
            return object_store.replace(uri, data, version)
        except (object_store.ConflictError, FileNotFoundError):
            return None
    _check_conditional(uri)
    with open(f"{uri}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_version(uri)
        if found is None or found[1] != version:
            return None
        write_bytes(uri, data)
    return hashlib.sha256(data).hexdigest()


def _check_conditional(uri: str) -> None:
    if not (is_local(uri) or in_store(uri)):
        raise PipelineError(f"{uri}: publishing needs conditional writes, known here for paths, s3:// and gs:// only")


def delete_tree(uri: str) -> None:
    """Removes a directory and what is below it; nothing happens where there is none."""
    if in_store(uri):
        object_store.delete(uri, [f"{urlsplit(uri).path.strip('/')}/{name}" for name, _ in list_files(uri)])
        return
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def delete_files(uri: str, names: list[str]) -> None:
    """Removes files below `uri` by their names; one that is gone already is fine."""
    if in_store(uri):
        object_store.delete(uri, [f"{urlsplit(uri).path.strip('/')}/{name}" for name in names])
        return
    for name in names:
        filesystem, path = open_filesystem(join(uri, name))
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)
