"""Lists the files of a directory or an archive: name, object, offset and length of each.

Tars and stored members of zips are read where they lie. A compressed tar and the compressed members of a zip can't be
read at random, so they are decompressed into the spool folder once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.ingestion.sources.archives import compressed, tars, zips
from pipeline.ingestion.sources.archives.ranged import Place
from pipeline.storage import files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|txz|tbz2?|tzst|tar\.(gz|xz|bz2|zst|zstd))$", re.IGNORECASE)
_COMPRESSION = re.compile(r"\.(gz|xz|bz2|zst|zstd)$", re.IGNORECASE)


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name. Hidden files, such as the `._x.jpg` of macOS, aren't."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def is_archive(name: str) -> bool:
    """Whether a file is a tar, compressed or not, or a zip, by its name. Hidden files aren't."""
    return bool(_ARCHIVE.search(name)) and not name.rsplit("/", 1)[-1].startswith(".")


def stem_of(name: str) -> str:
    """Returns the name of an archive without its suffixes; other names as they are."""
    return _ARCHIVE.sub("", _COMPRESSION.sub("", name))


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

    def place(self, index: int) -> Place:
        """Returns one file, to be read as an archive or as Parquet."""
        member = self.member(index)
        return Place(f"{self.uri}: {member.name}", member.object, member.offset, member.length)


def list_members(uri: str, spool: str, progress: Progress) -> Listing:
    """Returns the files at an absolute URI: of a directory, or of an archive, whose kind its first bytes tell.

    Of an archive that holds archives only, such as ImageNet's training archive, returns the files inside these, as
    `STEM/NAME`. Raises SourceError if there is nothing, or if it is empty, damaged, or no archive.
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
        listing = _list_archive(uri, spool, progress)
    if not len(listing):
        raise SourceError(f"{uri}: holds no file; give a folder or an archive with images")
    return listing


def _list_archive(uri: str, spool: str, progress: Progress) -> Listing:
    archive = Place(uri, uri, 0, files.size(uri))
    head = bytes(files.read_range(uri, 0, min(archive.length, 512)))
    md5 = None
    if head.startswith(zips.MAGICS):
        part = _zip_part("", zips.scan(archive, files.join(spool, "source.bin"), progress))
    else:
        if compressed.is_compressed(head):
            tar_uri = files.join(spool, "source.tar")
            md5 = compressed.decompress(archive, tar_uri, progress)
            archive = Place(uri, tar_uri, 0, files.size(tar_uri))
        elif head[257:262] != b"ustar":
            raise SourceError(
                f"{uri}: neither a folder nor an archive (.tar, .tar.gz, .tar.xz, .tar.bz2, .tar.zst, .zip); it begins "
                f"with {head[:16]!r}"
            )
        part = _tar_part("", archive, tars.scan([archive], progress=progress)[0])
    listing = _joined(uri, [part], files.fingerprint(uri), md5)
    if len(listing) and all(map(is_archive, listing.names)):
        return open_archives(listing, range(len(listing)), spool, progress=progress)
    return listing


def open_archives(
    listing: Listing, which: Sequence[int], spool: str, keep: tuple[str, ...] = (), progress: Progress = silent
) -> Listing:
    """Returns the files inside some archives of a listing, as `STEM/NAME`.

    which: indices of the archives, whose names tell their kinds. keep: suffixes of small files whose contents are
    wanted. Compressed archives are unpacked into `spool`, a compressed tar as a whole.
    """
    plain, parts = [], []
    for row in which:
        archive, name = listing.place(row), listing.names[row]
        stem = stem_of(name) + "/"
        if name.lower().endswith(".zip"):
            target = files.join(spool, f"archive-{row:06d}.bin")
            parts.append(_zip_part(stem, zips.scan(archive, target, progress), keep))
        elif name.lower().endswith(".tar"):
            plain.append((stem, archive))
        else:
            target = files.join(spool, f"archive-{row:06d}.tar")
            compressed.decompress(archive, target, progress)
            plain.append((stem, Place(archive.name, target, 0, files.size(target))))
    found = tars.scan([archive for _, archive in plain], keep, progress)
    parts += [_tar_part(stem, archive, table) for (stem, archive), table in zip(plain, found, strict=True)]
    return _joined(listing.uri, parts, listing.fingerprint, listing.md5)


def open_tars(
    listing: Listing, which: Sequence[int], keep: tuple[str, ...] = (), progress: Progress = silent
) -> Listing:
    """Returns the files inside some plain tars of a listing; see `open_archives`."""
    return open_archives(listing, which, "", keep, progress)


@dataclass(frozen=True)
class _Part:
    """The files of one archive: columns of equal length."""

    names: list[str]
    objects: list[str]
    offsets: Sequence[int] | npt.NDArray[np.int64]
    lengths: Sequence[int] | npt.NDArray[np.int64]
    contents: dict[str, bytes]
    damages: dict[str, str]  # {name: why it can't be read}


def _tar_part(stem: str, archive: Place, table: pa.Table) -> _Part:
    names = [stem + name for name in table["name"].to_pylist()]
    contents = {}
    if table["content"].null_count < table.num_rows:
        pairs = zip(names, table["content"].to_pylist(), strict=True)
        contents = {name: content for name, content in pairs if content is not None}
    objects = [archive.object] * len(names)
    return _Part(names, objects, table["offset"].to_numpy(), table["length"].to_numpy(), contents, {})


def _zip_part(stem: str, members: Sequence[zips.ZipMember], keep: tuple[str, ...] = ()) -> _Part:
    found = [Member(stem + each.name, each.object, each.offset, each.length) for each in members]
    damages = {stem + each.name: each.damage for each in members if each.damage}
    kept = [each for each in found if keep and each.name.endswith(keep) and each.length <= tars.MAX_KEPT_BYTES]
    return _Part(
        [each.name for each in found],
        [each.object for each in found],
        [each.offset for each in found],
        [each.length for each in found],
        {each.name: each.read() for each in kept if each.name not in damages},
        damages,
    )


def _joined(uri: str, parts: Sequence[_Part], fingerprint: str, md5: str | None) -> Listing:
    """Returns the files of some archives as one listing, sorted by name."""
    names = [name for part in parts for name in part.names]
    objects = [each for part in parts for each in part.objects]
    damages = {name: damage for part in parts for name, damage in part.damages.items()}
    order = sorted(range(len(names)), key=names.__getitem__)
    index = np.array(order, dtype=np.int64)
    columns = ([part.offsets for part in parts], [part.lengths for part in parts])
    offsets, lengths = (np.concatenate([np.empty(0, np.int64), *map(np.asarray, each)])[index] for each in columns)
    return Listing(
        uri,
        [names[row] for row in order],
        [objects[row] for row in order],
        offsets.astype(np.int64),
        lengths.astype(np.int64),
        fingerprint,
        md5,
        {name: content for part in parts for name, content in part.contents.items()},
        {at: damages[names[row]] for at, row in enumerate(order) if names[row] in damages},
    )
