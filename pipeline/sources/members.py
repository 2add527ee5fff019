"""The files of a directory or a tar, wherever it lies: name, object, offset, length. Nothing is extracted.

A compressed tar allows no random access, so its tar is written to the spool folder once; the md5 of the
compressed bytes falls out of the same pass.
"""

import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from pyarrow import fs

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.progress import Progress

_CHUNK_BYTES = 1 << 20
_OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}


@dataclass(frozen=True)
class Member:
    """One file of a source: `length` bytes at `offset` of the object at URI `object`."""

    name: str
    object: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Returns the file's bytes."""
        filesystem, path = storage.open_filesystem(self.object)
        with filesystem.open_input_file(path) as stream:
            return bytes(stream.read_at(self.length, self.offset))


@dataclass(frozen=True)
class Listing:
    """The files of a source, sorted by name. `md5` is that of a compressed archive, else None."""

    uri: str
    members: tuple[Member, ...]
    md5: str | None


def list_members(uri: str, spool: str, progress: Progress) -> Listing:
    """Lists the files at absolute `uri`: a directory or a tar, plain, .gz or .xz (told by content, not by name).

    Raises SourceError if there is nothing, or it is empty, damaged, or no tar.
    """
    kind = storage.stat(uri).type
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{uri}: no such file or directory; give an existing path or URI")
    md5 = None
    if kind == fs.FileType.Directory:
        members = [Member(name, storage.join(uri, name), 0, size) for name, size in storage.list_files(uri)]
    else:
        tar_uri, md5 = _spool_if_compressed(uri, spool, progress)
        members = sorted(_tar_members(tar_uri, uri, progress), key=lambda member: member.name)
    if not members:
        raise SourceError(f"{uri}: holds no file; give a folder or an archive with images")
    return Listing(uri, tuple(members), md5)


class _Hashing:
    """A readable stream that hashes and counts what passes, for the decompressors."""

    def __init__(self, stream: Any, report: Callable[[int], None]) -> None:
        self._stream, self._report = stream, report
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._stream.read(size if size >= 0 else None))
        self.md5.update(data)
        self.num_bytes += len(data)
        self._report(self.num_bytes)
        return data


def _spool_if_compressed(uri: str, spool: str, progress: Progress) -> tuple[str, str | None]:
    filesystem, path = storage.open_filesystem(uri)
    size = filesystem.get_file_info(path).size
    with filesystem.open_input_file(path) as stream:
        head = bytes(stream.read_at(min(size, 512), 0))
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        if head[257:262] != b"ustar":
            raise SourceError(
                f"{uri}: neither a folder nor a tar (.tar, .tar.gz, .tar.xz); it begins with {head[:16]!r}"
            )
        return uri, None
    tar_uri = storage.join(spool, "source.tar")
    out_filesystem, out_path = storage.open_filesystem(tar_uri)
    if storage.is_local(tar_uri):
        out_filesystem.create_dir(storage.open_filesystem(spool)[1])
    # compression=None: left to itself, pyarrow would decompress by the file's name.
    raw_stream = filesystem.open_input_stream(path, compression=None)
    with raw_stream as raw, out_filesystem.open_output_stream(out_path, compression=None) as out:
        hashing = _Hashing(raw, lambda done: progress("decompress", done, size))
        try:
            with opener(hashing) as plain:
                while chunk := plain.read(_CHUNK_BYTES):
                    out.write(chunk)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{uri}: the archive is truncated or damaged ({error}); download it again") from error
        while hashing.read(_CHUNK_BYTES):
            pass
    return tar_uri, hashing.md5.hexdigest()


def _tar_members(tar_uri: str, uri: str, progress: Progress) -> list[Member]:
    filesystem, path = storage.open_filesystem(tar_uri)
    members = []
    with filesystem.open_input_file(path) as stream:
        size = stream.size()
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    if info.isdir():
                        continue
                    members.append(Member(_safe_name(info, uri), tar_uri, info.offset_data, info.size))
                    if len(members) % 1000 == 0:
                        progress("index", info.offset_data, size)
        except tarfile.TarError as error:
            raise SourceError(f"{uri}: the archive is truncated or damaged ({error}); download it again") from error
        _check_end(stream, size, uri)
    progress("index", size, size)
    return members


def _check_end(stream: IO[bytes], size: int, uri: str) -> None:
    # tarfile takes an archive that was cut between two members for a whole one; a whole one ends in zeros.
    stream.seek(max(0, size - 512))
    if stream.read(512).strip(b"\0"):
        raise SourceError(f"{uri}: the archive is truncated (no end-of-archive mark); download it again")


def _safe_name(info: tarfile.TarInfo, uri: str) -> str:
    if not info.isfile():
        raise SourceError(f"{uri}: member {info.name!r} is a link or a device; an archive of images holds files only")
    name = info.name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{uri}: member {info.name!r} points outside the archive; don't use this archive")
    return name
