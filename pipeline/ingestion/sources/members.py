"""Lists the files of a directory or a tar: name, object, offset and length of each, without extracting anything.

A compressed tar can't be read at random, so it is decompressed into the spool folder once; the MD5 of the compressed
bytes is computed in the same pass.
"""

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Bytes, Progress, silent
from pipeline.ingestion.sources import tars
from pipeline.ingestion.sources.tars import Tar
from pipeline.storage import files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CHUNK_BYTES = 1 << 20
_OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name. Hidden files, such as the `._x.jpg` of macOS, aren't."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


@dataclass(frozen=True)
class Member:
    """One file of a source: `length` bytes at `offset` of the object at URI `object`."""

    name: str
    object: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Returns the file's bytes."""
        return bytes(files.read_range(self.object, self.offset, self.length))


@dataclass(frozen=True)
class Listing:
    """The files of a source, sorted by name: columns of equal length rather than objects, for there may be millions."""

    uri: str
    names: list[str]
    objects: list[str]  # absolute URIs
    offsets: npt.NDArray[np.int64]  # of the first byte in the object
    lengths: npt.NDArray[np.int64]  # bytes
    fingerprint: str  # a hash that changes when the source does
    md5: str | None = None  # hex, of a compressed archive only
    contents: dict[str, bytes] = field(default_factory=dict)  # of the small files that were asked for, by name
    unreadable: dict[int, str] = field(default_factory=dict)  # files that can't be read: {index: the reason}
    ignored: dict[str, int] = field(default_factory=dict)  # files that aren't listed: how many of each kind

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def image_rows(self) -> list[int]:
        """The indices of the files that are images."""
        return [row for row, name in enumerate(self.names) if is_image(name)]

    def member(self, index: int) -> Member:
        """Returns one file."""
        return Member(self.names[index], self.objects[index], int(self.offsets[index]), int(self.lengths[index]))

    def tar(self, index: int) -> Tar:
        """Returns one file as a tar."""
        return Tar(f"{self.uri}: {self.names[index]}", *self._place(index))

    def _place(self, index: int) -> tuple[str, int, int]:
        return self.objects[index], int(self.offsets[index]), int(self.lengths[index])


def list_members(uri: str, spool: str, progress: Progress) -> Listing:
    """Returns the files at an absolute URI: of a directory, or of a tar, plain, gzip or xz by its first bytes.

    Of a tar that holds tars only, such as ImageNet's training archive, returns the files inside these, as `STEM/NAME`.
    Raises SourceError if there is nothing, or if it is empty, damaged, or no tar.
    """
    kind = files.kind(uri)
    if kind == "missing":
        raise SourceError(f"{uri}: no such file or directory; give an existing path or URI")
    if kind == "directory":
        entries = files.list_entries(uri)
        listing = Listing(
            uri,
            [entry.name for entry in entries],
            [files.join(uri, entry.name) for entry in entries],
            np.zeros(len(entries), dtype=np.int64),
            np.array([entry.size for entry in entries], dtype=np.int64),
            files.fingerprint_of(uri, entries),
        )
    else:
        listing = _list_tar(uri, spool, progress)
    if not len(listing):
        raise SourceError(f"{uri}: holds no file; give a folder or an archive with images")
    return listing


def _list_tar(uri: str, spool: str, progress: Progress) -> Listing:
    tar_uri, md5 = _spool_if_compressed(uri, spool, progress)
    fingerprint = files.fingerprint(uri)
    tar = Tar(uri, tar_uri, 0, files.size(tar_uri))
    listing = _from_tables(uri, [(tar, "", tars.scan([tar], progress=progress)[0])], fingerprint, md5)
    if len(listing) and all(name.endswith(".tar") for name in listing.names):
        return open_tars(listing, range(len(listing)), progress=progress)
    return listing


def open_tars(listing: Listing, which: Any, keep: tuple[str, ...] = (), progress: Progress = silent) -> Listing:
    """Returns the files inside some tars of a listing, as `STEM/NAME`.

    which: indices of the tars. keep: suffixes of small files whose contents are wanted.
    """
    inner = [listing.tar(index) for index in which]
    found = tars.scan(inner, keep, progress)
    stems = [listing.names[index].removesuffix(".tar") + "/" for index in which]
    return _from_tables(listing.uri, list(zip(inner, stems, found, strict=True)), listing.fingerprint, listing.md5)


def _from_tables(uri: str, parts: list[tuple[Tar, str, pa.Table]], fingerprint: str, md5: str | None) -> Listing:
    names, objects = [], []
    contents = {}
    for tar, stem, table in parts:
        inside = [stem + name for name in table["name"].to_pylist()]
        names += inside
        objects += [tar.object] * len(inside)
        if table["content"].null_count < table.num_rows:
            pairs = zip(inside, table["content"].to_pylist(), strict=True)
            contents.update({name: content for name, content in pairs if content is not None})
    order = sorted(range(len(names)), key=names.__getitem__)
    together = pa.concat_tables([table for _, _, table in parts])
    index = np.array(order, dtype=np.int64)
    return Listing(
        uri,
        [names[row] for row in order],
        [objects[row] for row in order],
        together["offset"].to_numpy()[index],
        together["length"].to_numpy()[index],
        fingerprint,
        md5,
        contents,
    )


class _Hashing:
    """A readable stream that computes the MD5 of the bytes it returns, and reports their number."""

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
    """Returns (URI of the plain tar, MD5 of the archive); `uri` itself and None if it isn't compressed."""
    size = files.size(uri)
    head = bytes(files.read_range(uri, 0, min(size, 512)))
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        if head[257:262] != b"ustar":
            raise SourceError(
                f"{uri}: neither a folder nor a tar (.tar, .tar.gz, .tar.xz); it begins with {head[:16]!r}"
            )
        return uri, None
    filesystem, path = files.open_filesystem(uri)
    tar_uri = files.join(spool, "source.tar")
    out_filesystem, out_path = files.open_filesystem(tar_uri)
    if files.is_local(tar_uri):
        out_filesystem.create_dir(files.open_filesystem(spool)[1])
    # compression=None: by default pyarrow decompresses by the name of the file.
    raw_stream = filesystem.open_input_stream(path, compression=None)
    with raw_stream as raw, out_filesystem.open_output_stream(out_path, compression=None) as out:
        hashing = _Hashing(raw, lambda done: progress("decompress", Bytes(done), Bytes(size)))
        try:
            with opener(hashing) as plain:
                while chunk := plain.read(_CHUNK_BYTES):
                    out.write(chunk)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{uri}: the archive is truncated or damaged ({error}); download it again") from error
        while hashing.read(_CHUNK_BYTES):  # bytes after the end of the compressed stream belong to the MD5, too
            pass
    return tar_uri, hashing.md5.hexdigest()
