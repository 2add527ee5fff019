"""List and look up files on local disks and objects in stores."""

import errno
import hashlib
import os
import posixpath
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, overload
from urllib.parse import urlsplit

import numpy as np
from pyarrow import fs

from pipeline.core.errors import StorageError
from pipeline.storage import object_store
from pipeline.storage.file_names import escaped, printable, real_path
from pipeline.storage.system_errors import one_line_errors
from pipeline.storage.uris import in_store, is_local, join, object_uri, open_filesystem

LISTING_THREADS = 32
_CLOSED = "folder not readable"


@dataclass(frozen=True, order=True, slots=True)  # there may be millions
class Entry:
    """A file below a directory: its name relative to it, size in bytes, time of the last change, and ETag."""

    name: str
    size: int
    modified_ns: int
    etag: str = ""  # in stores: changes with the content; "" on disks


class Entries(Sequence[Entry]):
    """The files below a local directory, sorted by name, in columns: an `Entry` for each is made when it is read."""

    def __init__(self, names: list[str], sizes: "array[int]", modified_ns: "array[int]") -> None:
        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        self.names = [names[row] for row in order]
        self.sizes, self._modified_ns = (np.array(each, np.int64)[order] for each in (sizes, modified_ns))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        return Entry(self.names[at], int(self.sizes[at]), int(self._modified_ns[at]))


def kind(uri: str) -> Literal["file", "directory", "missing"]:
    """Returns what is at `uri`; in object storage a prefix of any key is a directory.

    Raises StorageError for a pipe, socket or device, which might be read without end.
    """
    if in_store(uri):
        return _kind_in_store(uri)
    if is_local(uri):
        return _kind_on_disk(uri)
    filesystem, path = open_filesystem(uri)
    found = filesystem.get_file_info(path).type
    if found == fs.FileType.Directory:
        return "directory"
    return "missing" if found == fs.FileType.NotFound else "file"


def _kind_on_disk(path: str) -> Literal["file", "directory", "missing"]:
    try:
        mode = os.stat(real_path(path)).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return "missing"
        raise
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return "file" if stat.S_ISREG(mode) else "directory"
    raise StorageError(f"{path}: neither a file nor a folder, but a pipe, socket or device; give a file or a folder")


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
    """Returns whether there is a file or a directory at `uri`."""
    return kind(uri) != "missing"


def size(uri: str) -> int:
    """Returns the size of a file in bytes. Raises FileNotFoundError."""
    if in_store(uri):
        return int(object_store.head(uri)["size"])
    if is_local(uri):
        return os.stat(real_path(uri)).st_size
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(uri)
    return int(info.size)


@dataclass(frozen=True)
class Tree:
    """Everything below a directory. Names are relative to it; such that aren't UTF-8 are `file_names.escaped`."""

    entries: Sequence[Entry]  # files that can be read, sorted by name
    unreadable: dict[str, str]  # {name: KIND: DETAIL} of links to nothing, files and folders without permission, pipes
    empty_folders: list[str]  # on local disks: folders that hold neither files nor folders


def list_tree(uri: str) -> Tree:
    """Returns the files below `uri`, those that can't be read included; a bucket is listed by many prefixes at once.

    On local disks links are followed, to folders as well. Nothing is left out: each directory entry is a folder that is
    listed, an entry, or named as unreadable.
    """
    if is_local(uri):
        with one_line_errors(uri):
            return _list_local(uri)
    if in_store(uri):
        return Tree(_list_store(uri), {}, [])
    filesystem, path = open_filesystem(uri)
    with one_line_errors(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    files = (info for info in infos if info.type == fs.FileType.File)
    return Tree(sorted(Entry(info.path.removeprefix(prefix), info.size, info.mtime_ns or 0) for info in files), {}, [])


def list_entries(uri: str) -> list[Entry]:
    """Returns every file below `uri` that can be read, sorted by name. Raises PermissionError for a closed folder."""
    tree = list_tree(uri)
    closed = next((name for name, reason in tree.unreadable.items() if reason.startswith(_CLOSED)), None)
    if closed is not None:
        place = join(uri, printable(closed))
        with one_line_errors(place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
    return list(tree.entries)


def _list_local(root: str) -> Tree:
    names, sizes, times = list[str](), array("q"), array("q")
    unreadable: dict[str, str] = {}
    empty: list[str] = []
    try:
        found = os.stat(root)
    except FileNotFoundError:
        return Tree([], {}, [])
    # (name of a folder, with "/" at its end; the folders that it lies in, so that a link to one of them ends the walk)
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ((found.st_dev, found.st_ino),))]
    while todo:
        folder, above = todo.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listed:
                inside = list(listed)
        except OSError as error:
            if not folder:
                raise
            if error.errno != errno.ENOENT:  # else it has gone since its parent was listed
                unreadable[escaped(folder.rstrip("/"))] = f"{_CLOSED}: {error.strerror}"
            continue
        if not inside and folder:
            empty.append(escaped(folder.rstrip("/")))
        for each in inside:
            name = folder + each.name
            try:
                found = each.stat()
            except OSError as error:
                unreadable[escaped(name)] = _refused(each.path, error)
                continue
            if stat.S_ISDIR(found.st_mode):
                place = (found.st_dev, found.st_ino)
                if place in above:
                    unreadable[escaped(name)] = "link to a folder that it lies in"
                else:
                    todo.append((f"{name}/", (*above, place)))
            elif reason := _no_readable_file(each.path, found):
                unreadable[escaped(name)] = reason
            else:
                names.append(escaped(name))
                sizes.append(found.st_size)
                times.append(found.st_mtime_ns)
    return Tree(Entries(names, sizes, times), dict(sorted(unreadable.items())), sorted(empty))


def why_unreadable(path: str) -> str | None:
    """Returns why a local file can't be read, in the words of `list_tree`; None if it can, or is a folder."""
    path = real_path(path)
    try:
        found = os.stat(path)
    except OSError as error:
        return _refused(path, error)
    return None if stat.S_ISDIR(found.st_mode) else _no_readable_file(path, found)


def _refused(path: str, error: OSError) -> str:
    if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return f"dangling link: {printable(escaped(os.readlink(path)))} is not there"
    return f"file not readable: {error.strerror}"


def _no_readable_file(path: str, found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return "not a file: a pipe, socket or device"
    if not os.access(path, os.R_OK, effective_ids=True):  # as `open` asks
        return f"file not readable: {os.strerror(errno.EACCES)}"
    return None


def _list_store(uri: str) -> list[Entry]:
    # The pages of one listing come one after another, so a bucket of a million keys is listed by its folders.
    prefixes, found = object_store.list_level(uri)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for _ in range(2):
            if not prefixes or len(prefixes) >= LISTING_THREADS:
                break
            levels = list(pool.map(lambda prefix: object_store.list_level(object_uri(uri, prefix)), prefixes))
            prefixes = [prefix for deeper, _ in levels for prefix in deeper]
            found += [entry for _, here in levels for entry in here]
        for below in pool.map(lambda prefix: object_store.list_below(object_uri(uri, prefix)), prefixes):
            found += below
    start = len(urlsplit(uri).path.strip("/"))
    start += 1 if start else 0
    entries = [_of_object(entry["path"][start:], entry) for entry in found if len(entry["path"]) > start]
    # Some tools write an empty object NAME/ for a folder, and obstore drops the slash. So an empty object counts as a
    # folder if it has files below it, or no suffix.
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
    """Returns the names of the directories directly below `uri`, sorted."""
    if in_store(uri):
        return sorted(posixpath.basename(prefix.rstrip("/")) for prefix in object_store.list_level(uri)[0])
    filesystem, path = open_filesystem(uri)
    with one_line_errors(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def fingerprint(uri: str) -> str:
    """Returns a hash of the names, sizes and times of a file or of all files below a directory."""
    if kind(uri) != "directory":
        return fingerprint_of(uri, [entry_of(uri)])
    tree = list_tree(uri)
    return fingerprint_of(uri, tree.entries, tree.unreadable)


def fingerprint_of(uri: str, entries: Sequence[Entry], unreadable: Mapping[str, str] | None = None) -> str:
    """Returns the fingerprint of `uri` from an existing listing of its files: fields of `Tree`."""
    digest = hashlib.sha256(uri.encode())
    for entry in entries if isinstance(entries, Entries) else sorted(entries):
        digest.update(f"\n{entry.name} {entry.size} {entry.modified_ns}".encode())
    for name, reason in (unreadable or {}).items():
        digest.update(f"\n{name} {reason}".encode())
    return digest.hexdigest()


def _of_object(name: str, found: Mapping[str, Any]) -> Entry:
    """Returns the entry of an object that `object_store` has looked up or listed."""
    modified_ns = int(found["last_modified"].timestamp() * 1e9)
    return Entry(name, int(found["size"]), modified_ns, found.get("e_tag") or "")


def entry_of(uri: str) -> Entry:
    """Returns the entry of a single file, with "" for its name."""
    if in_store(uri):
        return _of_object("", object_store.head(uri))
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    return Entry("", info.size or 0, info.mtime_ns or 0)
