"""Read, write and delete files on local disks and objects in S3 and Google Cloud Storage, by one set of functions.

Both behave alike: a file appears as a whole, and of several writers one can be the first. This module also has the
names of `uris`, `listing` and `local_files`, so that a caller needs `files` alone. Other schemes than s3 and gs are
read and written through pyarrow.
"""

import fcntl
import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from pyarrow import fs

from pipeline.core.errors import DamagedError, PipelineError
from pipeline.storage import object_store
from pipeline.storage.listing import (
    Entries,
    Entry,
    Tree,
    entry_of,
    exists,
    fingerprint,
    fingerprint_of,
    kind,
    list_directories,
    list_entries,
    list_files,
    list_tree,
    size,
)
from pipeline.storage.local_files import MappedFile, map_file, read_local_range, temporary_beside, write_direct
from pipeline.storage.retries import ConflictError
from pipeline.storage.system_errors import one_line_errors, raise_if_full
from pipeline.storage.uris import absolute, basename, in_store, is_local, join, open_filesystem, relative, resolve

__all__ = [
    "Entries",
    "Entry",
    "MappedFile",
    "Tree",
    "absolute",
    "basename",
    "delete_files",
    "delete_tree",
    "entry_of",
    "exists",
    "fingerprint",
    "fingerprint_of",
    "in_store",
    "is_local",
    "join",
    "kind",
    "list_directories",
    "list_entries",
    "list_files",
    "list_tree",
    "map_file",
    "open_filesystem",
    "parse_record",
    "read_bytes",
    "read_json",
    "read_range",
    "read_record",
    "read_version",
    "relative",
    "replace",
    "resolve",
    "size",
    "write_bytes",
    "write_json",
    "write_mapped",
    "write_once",
    "write_pieces",
]
_Form = TypeVar("_Form")


def read_bytes(uri: str) -> bytes:
    """Returns the content of a file. Raises FileNotFoundError."""
    if in_store(uri):
        return object_store.read(uri)[0]
    filesystem, path = open_filesystem(uri)
    with one_line_errors(uri), filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def read_json(uri: str) -> Any:
    """Returns the value of a JSON file. Raises FileNotFoundError, or DamagedError if it isn't JSON."""
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, uri: str) -> Any:
    """Returns the value of a JSON text. uri: of the file, for the message. Raises DamagedError if it isn't JSON."""
    try:
        return json.loads(data)
    except ValueError as error:
        what = f"not JSON ({error})" if data else "empty"
        raise DamagedError(f"{uri}: damaged: {what}; restore the file, or give another folder") from error


def parse_record(data: bytes, uri: str, form: type[_Form], remedy: str) -> _Form:
    """Returns a JSON text as a value of `form`: a msgspec.Struct, a dataclass, dict[str, int] and the like.

    uri, remedy: of the file, for the message. Raises DamagedError if the text is no JSON or of another form.
    """
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        raise _of_another_form(uri, error, remedy) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = f"not JSON ({error})" if data else "empty"
        raise DamagedError(f"{uri}: damaged: {what}; {remedy}") from error


def as_record(values: Any, uri: str, form: type[_Form], remedy: str) -> _Form:
    """Returns the values of a JSON file as one of `form`, see `parse_record`; NaN, too, which is no JSON for that."""
    try:
        return msgspec.convert(values, form)
    except msgspec.ValidationError as error:
        raise _of_another_form(uri, error, remedy) from error


def _of_another_form(uri: str, error: msgspec.ValidationError, remedy: str) -> DamagedError:
    return DamagedError(f"{uri}: damaged, or written by another release ({error}); {remedy}")


def read_record(uri: str, form: type[_Form], remedy: str) -> _Form:
    """Returns the value of a JSON file, see `parse_record`. Raises FileNotFoundError, too."""
    return parse_record(read_bytes(uri), uri, form, remedy)


def read_range(uri: str, offset: int, length: int) -> memoryview:
    """Returns `length` bytes at `offset`, from object storage by one request. Raises OSError if there are fewer."""
    if in_store(uri):
        return object_store.read_range(uri, offset, length)
    data = read_local_range(uri, offset, length) if is_local(uri) else _read_other(uri, offset, length)
    if len(data) != length:
        raise OSError(f"{uri}: {len(data)} bytes at {offset}, {length} were expected; the file has changed")
    return memoryview(data)


def _read_other(uri: str, offset: int, length: int) -> bytes:
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read_at(length, offset))


def write_bytes(uri: str, data: Any) -> None:
    """Writes a file so that a reader sees the old or the whole new one: by a rename on disks, by one PUT in a store."""
    if in_store(uri):
        object_store.write(uri, data)
        return
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    with temporary_beside(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_json(uri: str, value: Any, pretty: bool = False) -> None:
    """Writes `value` as JSON, as `write_bytes` does. pretty: one value a line, for people; else on one line."""
    write_bytes(uri, json.dumps(value, indent=1).encode() + b"\n" if pretty else json.dumps(value).encode())


@contextmanager
def write_pieces(uri: str) -> Iterator[Any]:
    """Yields a stream for a file that is too long for memory, and is there in part while the block runs.

    Makes its folder. Raises StorageError if the disk is full or the folder can't be written.
    """
    filesystem, path = open_filesystem(uri)
    with one_line_errors(uri, writing=True):
        if is_local(uri):
            filesystem.create_dir(path.rsplit("/", 1)[0])
        stream = filesystem.open_output_stream(path, compression=None)  # by default its name decides
    try:
        with stream:
            yield stream
    except OSError as error:
        raise_if_full(error, uri)
        raise


def write_mapped(uri: str, memory: mmap.mmap, size: int) -> None:
    """Writes the first `size` bytes of an anonymous mapping, as `write_bytes` does.

    A disk that can is written past the page cache (O_DIRECT), and flushed. Copying a shard into the page cache costs
    more CPU than all the rest of its ingestion (docs/log.md), and nobody reads it soon.
    """
    if not is_local(uri):
        with memoryview(memory) as view, view[:size] as data:
            write_bytes(uri, data)
        return
    with temporary_beside(uri) as temporary:
        write_direct(temporary, memory, size)


def write_once(uri: str, data: bytes) -> bool:
    """Writes a file unless there is one already, and returns whether it did; of several concurrent writers one does.

    On disks by a hard link, which never overwrites; in stores by a conditional PUT (S3: `If-None-Match: *`).
    """
    if in_store(uri):
        try:
            object_store.create(uri, data)
        except ConflictError:
            return False
        return True
    _check_conditional(uri)
    # A link makes the whole file appear at once; O_EXCL would let others see it half written.
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
    """Returns the content of a file and its version, for `replace`; None if there is no file."""
    _check_conditional(uri)
    try:
        if in_store(uri):
            return object_store.read(uri)
        data = Path(uri).read_bytes()
    except FileNotFoundError:
        return None
    # A hash, not the time of change: two writes within the clock's resolution must be two versions.
    return data, hashlib.sha256(data).hexdigest()


def replace(uri: str, data: bytes, version: str) -> str | None:
    """Replaces a file if it still has this version (compare-and-swap). Returns the new version, or None if it hasn't.

    In stores by a conditional PUT (S3: `If-Match`, Google: the generation); on disks under a lock (`flock`) on a file
    beside it.
    """
    if in_store(uri):
        try:
            return object_store.replace(uri, data, version)
        except (ConflictError, FileNotFoundError):
            return None
    _check_conditional(uri)
    with one_line_errors(uri, writing=True), open(f"{uri}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_version(uri)
        if found is None or found[1] != version:
            return None
        write_bytes(uri, data)
    return hashlib.sha256(data).hexdigest()


def _check_conditional(uri: str) -> None:
    if not (is_local(uri) or in_store(uri)):
        raise PipelineError(
            f"{uri}: publishing needs conditional writes, which are supported for paths, s3:// and gs:// only"
        )


def delete_tree(uri: str) -> None:
    """Removes a directory and everything below it, if there is one."""
    if in_store(uri):
        object_store.delete(uri, [f"{urlsplit(uri).path.strip('/')}/{name}" for name, _ in list_files(uri)])
        return
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def delete_files(uri: str, names: list[str]) -> None:
    """Removes files below `uri` by their names; a missing file is no error."""
    if in_store(uri):
        object_store.delete(uri, [f"{urlsplit(uri).path.strip('/')}/{name}" for name in names])
        return
    for name in names:
        filesystem, path = open_filesystem(join(uri, name))
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)
