"""Lists the files of a directory or an archive: name, object, offset and length of each.

Tars and stored members of zips are read where they lie. A compressed tar and the compressed members of a zip can't be
read at random, so they are decompressed into the spool folder once.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.ingestion.changes.stamps import stamps_of
from pipeline.ingestion.sources.archives import compressed, tars, zips
from pipeline.ingestion.sources.archives.ranged import Place
from pipeline.ingestion.sources.recognise.contents import find_images
from pipeline.ingestion.sources.recognise.file_kinds import kind_of, left_behind
from pipeline.storage import files
from pipeline.storage.file_names import printable

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|txz|tbz2?|tzst|tar\.(gz|xz|bz2|zst|zstd))$", re.IGNORECASE)
_OLDER = "older versions of files in an archive"
_COMPRESSION = re.compile(r"\.(gz|xz|bz2|zst|zstd)$", re.IGNORECASE)


def is_archive(name: str) -> bool:
    """Whether a file is a tar, compressed or not, or a zip, by its name."""
    return bool(_ARCHIVE.search(name))


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
class Joined(Sequence[str]):
    """URIs of files below a folder, made when they are read: a list of them would be a third of a listing's memory."""

    folder: str
    names: Sequence[str]  # relative to it

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        names = self.names[at]
        return files.join(self.folder, names) if isinstance(names, str) else [files.join(self.folder, n) for n in names]


def chosen_objects(objects: Sequence[str], rows: Sequence[int] | npt.NDArray[np.int64]) -> Sequence[str]:
    """Returns some of the objects of a listing, by their indices."""
    if isinstance(objects, Joined):
        return Joined(objects.folder, [objects.names[row] for row in rows])
    return [objects[row] for row in rows]


@dataclass(frozen=True)
class Listing:
    """The files of a source, sorted by name: columns of equal length rather than objects, for there may be millions."""

    uri: str
    names: list[str]
    objects: Sequence[str]  # absolute URIs
    offsets: npt.NDArray[np.int64]  # of the first byte in the object
    lengths: npt.NDArray[np.int64]  # bytes
    fingerprint: str  # a hash that changes when the source does
    md5: str | None = None  # hex, of a compressed archive only
    contents: dict[str, bytes] = field(default_factory=dict)  # of the small files that were asked for, by name
    unreadable: dict[int, str] = field(default_factory=dict)  # files that can't be read: {index: the reason}
    ignored: dict[str, int] = field(default_factory=dict)  # files that aren't listed: how many of each kind
    empty_folders: list[str] = field(default_factory=list)  # on local disks
    stamps: pa.Table | None = (
        None  # of the source's objects, see `changes.stamps`; None if the listing isn't of a source
    )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def image_rows(self) -> list[int]:
        """The indices of the files that are images, by name or content; files that can't be read may be among them."""
        return find_images(self.names, self.objects, self.offsets, self.lengths, self.unreadable)

    def rows_without(self, *rows: Iterable[int]) -> list[int]:
        """Returns the indices of the files that are in none of some lists of indices."""
        is_left = np.ones(len(self), dtype=np.bool_)  # a byte each, where a set of them would take seventy
        for each in rows:
            is_left[np.fromiter(each, dtype=np.int64)] = False
        return [int(row) for row in np.flatnonzero(is_left)]

    @property
    def num_ignored(self) -> int:
        """Files that aren't listed."""
        return sum(self.ignored.values())

    def member(self, index: int) -> Member:
        """Returns one file."""
        return Member(self.names[index], self.objects[index], int(self.offsets[index]), int(self.lengths[index]))

    def only(self, rows: Sequence[int]) -> "Listing":
        """Returns some of the files, as a listing of their own."""
        chosen = np.array(rows, dtype=np.int64)
        return replace(
            self,
            names=[self.names[row] for row in rows],
            objects=chosen_objects(self.objects, rows),
            offsets=self.offsets[chosen],
            lengths=self.lengths[chosen],
            contents={},
            unreadable={at: self.unreadable[row] for at, row in enumerate(rows) if row in self.unreadable},
        )

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
    listing = _list_folder(uri) if kind == "directory" else _list_archive(uri, spool, progress)
    if not len(listing):
        what = f"no file but {listing.num_ignored:,} that systems leave behind" if listing.ignored else "no file"
        raise SourceError(f"{uri}: holds {what}; give a folder or an archive with images")
    return listing


def _list_folder(uri: str) -> Listing:
    listed_ns = time.time_ns()
    tree = files.list_tree(uri)
    fingerprint, stamps = (
        files.fingerprint_of(uri, tree.entries, tree.unreadable),
        stamps_of(uri, tree.entries, listed_ns),
    )
    unreadable, empty_folders = tree.unreadable, tree.empty_folders
    entries = tree.entries
    names = [*(entries.names if isinstance(entries, files.Entries) else (each.name for each in entries)), *unreadable]
    sizes = np.zeros(len(names), dtype=np.int64)
    sizes[: len(entries)] = np.fromiter((entry.size for entry in entries), dtype=np.int64)
    del tree, entries  # of many files they are half of the memory
    part = _Part(
        list(map(printable, names)),
        Joined(uri, names),
        np.zeros(len(names), dtype=np.int64),
        sizes,
        {},
        {printable(name): reason for name, reason in unreadable.items()},
    )
    empty = [folder for each in empty_folders if not left_behind(folder := printable(each))]
    return replace(_listing(uri, part, fingerprint, empty_folders=empty), stamps=stamps)


def _list_archive(uri: str, spool: str, progress: Progress) -> Listing:
    entry = files.entry_of(uri)
    archive = Place(uri, uri, 0, entry.size)
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
    listing = _joined(uri, [part], files.fingerprint_of(uri, [entry]), md5, {})
    if len(listing) and all(map(is_archive, listing.names)):
        listing = open_archives(listing, range(len(listing)), spool, progress=progress)
    return replace(listing, stamps=stamps_of(uri, [entry]))


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
    opened = set(which)
    others = Counter(kind_of(name) for row, name in enumerate(listing.names) if row not in opened)
    return _joined(listing.uri, parts, listing.fingerprint, listing.md5, others + Counter(listing.ignored))


def open_tars(
    listing: Listing, which: Sequence[int], keep: tuple[str, ...] = (), progress: Progress = silent
) -> Listing:
    """Returns the files inside some plain tars of a listing; see `open_archives`."""
    return open_archives(listing, which, "", keep, progress)


@dataclass(frozen=True)
class _Part:
    """The files of a folder, or of one archive: columns of equal length."""

    names: list[str]
    objects: Sequence[str]
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
    damages = {}
    if table["damage"].null_count < table.num_rows:
        pairs = zip(names, table["damage"].to_pylist(), strict=True)
        damages = {name: damage for name, damage in pairs if damage is not None}
    objects = [archive.object] * len(names)
    return _Part(names, objects, table["offset"].to_numpy(), table["length"].to_numpy(), contents, damages)


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


def _joined(uri: str, parts: Sequence[_Part], fingerprint: str, md5: str | None, ignored: Mapping[str, int]) -> Listing:
    """Returns the files of some archives as one listing."""
    together = _Part(
        [name for part in parts for name in part.names],
        [each for part in parts for each in part.objects],
        np.concatenate([np.empty(0, np.int64), *(np.asarray(part.offsets) for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(np.asarray(part.lengths) for part in parts)]),
        {name: content for part in parts for name, content in part.contents.items()},
        {name: damage for part in parts for name, damage in part.damages.items()},
    )
    return _listing(uri, together, fingerprint, md5, ignored)


def _listing(
    uri: str,
    found: _Part,
    fingerprint: str,
    md5: str | None = None,
    ignored: Mapping[str, int] | None = None,
    empty_folders: Sequence[str] = (),
) -> Listing:
    """Returns the files sorted by name, without those that systems leave behind, and counts these.

    Of several files with one name, as in a tar that was appended to, the last one counts.
    """
    left_out = Counter(ignored or {})
    order = sorted(range(len(found.names)), key=found.names.__getitem__)
    chosen = []
    for at, row in enumerate(order):
        name = found.names[row]
        if (part := left_behind(name)) is not None:
            left_out[part] += 1
        elif at + 1 < len(order) and found.names[order[at + 1]] == name:
            left_out[_OLDER] += 1
        else:
            chosen.append(row)
    index = np.array(chosen, dtype=np.int64)
    names = [found.names[row] for row in chosen]
    return Listing(
        uri,
        names,
        chosen_objects(found.objects, chosen),
        np.asarray(found.offsets, np.int64)[index],
        np.asarray(found.lengths, np.int64)[index],
        fingerprint,
        md5,
        found.contents,
        {at: found.damages[name] for at, name in enumerate(names) if name in found.damages} if found.damages else {},
        dict(left_out),
        list(empty_folders),
    )
