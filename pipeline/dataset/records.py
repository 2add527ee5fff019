"""The parts of a manifest: shards and splits, and the other data sets that a version or a mixture refers to."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.storage import files

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EditFile:
    """A Parquet file that says which stored rows a version leaves out or relabels (`edits.py`)."""

    path: str
    """Below the folder of the manifest."""

    sha256: str
    """Hex."""


@dataclass(frozen=True)
class ShardEdits:
    """How a version sees one shard. Not in the file: follows from the manifest's `version`."""

    shard: str  # name of the shard in the edit files: BASE/PATH, or PATH of a version's own shard
    deletions: EditFile | None
    corrections: EditFile | None
    classes: tuple[str, ...]  # of the version
    labels: tuple[int, ...] | None  # the version's label for each stored one, -1 for a class that is gone; None: equal


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split, and the provenance of its rows."""

    path: str  # below the folder of the manifest, or below that of its base
    rows: int  # stored in the file; a version may leave some of them out
    bytes: int
    sha256: str  # hex
    row_group_rows: tuple[int, ...]
    row_group_offsets: tuple[int, ...]  # first byte of each row group in the file
    row_group_bytes: tuple[int, ...]
    provenance_path: str  # below the folder of the manifest; its rows are described by `schema.PROVENANCE_SCHEMA`
    provenance_sha256: str  # hex
    base: str = ""  # name in the version's `bases` of the data set that holds the shard; "" for the version's own
    deleted: tuple[int, ...] = ()  # stored rows that the version leaves out, of each row group; () for none
    key_prefix: str = ""  # of the keys of a mixture's source, so that keys stay unique; not in the file
    edits: ShardEdits | None = None  # not in the file

    @property
    def live_group_rows(self) -> tuple[int, ...]:
        """Rows of each row group that aren't left out; 0 for some, perhaps."""
        if not self.deleted:
            return self.row_group_rows
        return tuple(stored - gone for stored, gone in zip(self.row_group_rows, self.deleted, strict=True))

    @property
    def live_rows(self) -> int:
        """Rows that aren't left out."""
        return self.rows - sum(self.deleted)


@dataclass(frozen=True)
class Split:
    """One split: its rows, without those that a version leaves out, and its shards."""

    rows: int
    rows_per_class: tuple[int, ...]  # in the order of the manifest's classes
    shards: tuple[Shard, ...]

    @cached_property
    def row_group_rows(self) -> tuple[int, ...]:
        """Rows of each row group of the split, shard after shard, without row groups that have none left."""
        return tuple(rows for shard in self.shards for rows in shard.live_group_rows if rows)

    @cached_property
    def row_group_places(self) -> list[tuple[Shard, int]]:
        """(shard, index of the row group in the shard) for each row group of the split."""
        return [(shard, at) for shard in self.shards for at, rows in enumerate(shard.live_group_rows) if rows]


def content_of(split: Split) -> str:
    """Returns a SHA-256 (hex) that identifies the rows of a split and what is known of them, wherever they lie."""
    digest, classes = hashlib.sha256(), dict[int, str]()  # of a version: the same tuple in all shards
    for shard in split.shards:
        digest.update(f"{shard.sha256} {shard.provenance_sha256} {shard.base} {shard.key_prefix} ".encode())
        if (edits := shard.edits) is not None:
            if id(edits.classes) not in classes:
                classes[id(edits.classes)] = hashlib.sha256(repr(edits.classes).encode()).hexdigest()
            edited = [file and file.sha256 for file in (edits.deletions, edits.corrections)]
            digest.update(f"{edits.shard} {edited} {classes[id(edits.classes)]} ".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Base:
    """A data set in whose folder some shards of a version lie."""

    uri: str
    """Relative to the version's folder ("../v1"), or absolute; not part of the digest."""

    digest: str
    """Digest of the manifest that it had when the version was made."""

    classes: tuple[str, ...]
    """What the labels in its own shards mean."""


@dataclass(frozen=True)
class Version:
    """What makes a data set a version of others: it refers to their shards, and leaves out or relabels rows."""

    parent: str
    """Digest of the version that this one was made from."""

    bases: dict[str, Base]
    """The data sets whose shards it refers to, by the first digits of their digests."""

    deletions: EditFile | None = None
    """Stored rows that are left out, of all shards of this version; None for none."""

    corrections: EditFile | None = None
    """Stored rows that have another class, of all shards of this version; None for none."""


@dataclass(frozen=True)
class Source:
    """One of the data sets that a mixture is made of."""

    uri: str
    """Absolute path or URI; not part of the digest."""

    digest: str
    """Digest of its manifest."""

    shards: dict[str, int]
    """Its number of shards in each split, which follow those of the sources before it."""

    version: Version | None = None
    """That of its manifest."""


def of_source(shard: Shard, name: str, source: Source, classes: tuple[str, ...]) -> Shard:
    """Returns a shard of a mixture's source with its place, edits and key prefix. classes: of the mixture."""
    if source.version is not None:
        shard = of_version(shard, source.version, classes)
    edits = shard.edits and replace(
        shard.edits,
        deletions=_moved(shard.edits.deletions, source.uri),
        corrections=_moved(shard.edits.corrections, source.uri),
    )
    path, provenance = files.resolve(source.uri, shard.path), files.resolve(source.uri, shard.provenance_path)
    return replace(shard, path=path, provenance_path=provenance, key_prefix=f"{name}/", edits=edits)


def edit_name(shard: Shard) -> str:
    """Returns the name of a shard in a version's edit files. shard: as in the manifest's file."""
    return f"{shard.base}/{shard.path}" if shard.base else shard.path


def of_version(shard: Shard, version: Version, classes: tuple[str, ...]) -> Shard:
    """Returns a shard with its place and edits, from the folder of the version's manifest."""
    if not shard.base:
        edits = ShardEdits(shard.path, version.deletions, version.corrections, classes, None)
        return replace(shard, edits=edits)
    base = version.bases[shard.base]
    edits = ShardEdits(
        edit_name(shard), version.deletions, version.corrections, classes, _labels(base.classes, classes)
    )
    path, provenance = files.join(base.uri, shard.path), files.join(base.uri, shard.provenance_path)
    return replace(shard, path=path, provenance_path=provenance, edits=edits)


@lru_cache(maxsize=64)  # once for all shards of a base
def _labels(stored: tuple[str, ...], classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Returns the label in `classes` of each of `stored`, -1 for a class that is gone; None if they are equal."""
    if stored == classes:
        return None
    numbers = {name: label for label, name in enumerate(classes)}
    return tuple(numbers.get(name, -1) for name in stored)


def _moved(file: EditFile | None, uri: str) -> EditFile | None:
    return file and replace(file, path=files.resolve(uri, file.path))
