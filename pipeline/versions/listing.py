"""A summary of each version in a folder."""

import os
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.core.errors import DatasetError
from pipeline.dataset.edits import CORRECTIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.ingestion.corrections.decide import KEPT
from pipeline.storage import files
from pipeline.versions.family import DROPPED_NAME, Member, check_folder_of_versions, read_family


@dataclass(frozen=True)
class VersionSummary:
    """What a version holds, and how it differs from the one that it was made from."""

    name: str
    """Of its folder."""

    rows: int
    """Rows of all splits; 0 if it was dropped."""

    added: int
    """Rows that it has and its parent hasn't; all of them if it stands alone."""

    removed: int | None
    """Rows that its parent has and it hasn't. None if the parent isn't in the folder."""

    relabelled: int | None
    """Rows to which it gives another class than its parent does. None if the parent isn't in the folder."""

    own_bytes: int
    """Bytes of the shards in its folder."""

    shared_bytes: int
    """Bytes of the shards of other versions that it refers to."""

    parent: str
    """Name of the version that it was made from, or the first digits of its digest; "" if it stands alone."""

    digest: str
    """Digest of its manifest."""

    modified_ns: int
    """Time of its publication: of the last change of `manifest.json`, in nanoseconds since 1970."""

    dropped: bool
    """Whether it was dropped, and shards stay that other versions need."""


def list_versions(folder: str | os.PathLike[str]) -> list[VersionSummary]:
    """Returns a summary of each version in a folder, in the order of their publication.

    Raises DatasetError if there is no such folder, or a version in it is damaged.
    """
    folder = files.absolute(os.fspath(folder))
    check_folder_of_versions(folder)
    members = read_family(folder)
    if not members:
        raise DatasetError(f"{folder}: no version lies in it (a folder with {MANIFEST_NAME}); give the folder of some")
    by_digest = {member.manifest.digest: member for member in members}
    return sorted((_summary(member, by_digest) for member in members), key=lambda each: (each.modified_ns, each.name))


def _summary(member: Member, by_digest: dict[str, Member]) -> VersionSummary:
    data, version = member.manifest, member.manifest.version
    if version is not None and not version.parent:  # a compacted copy, which stands alone
        version = None
    own = member.own_shards
    place = files.join(member.uri, DROPPED_NAME if member.dropped else MANIFEST_NAME)
    every = [shard for split in data.splits.values() for shard in split.shards]
    parent = by_digest.get(version.parent) if version else None
    live = parent is not None and not parent.dropped
    added = sum(shard.live_rows for shard in own)
    removed = parent.manifest.rows + added - data.rows if parent is not None and live else None
    return VersionSummary(
        name=member.name,
        rows=0 if member.dropped else data.rows,
        added=added,
        removed=removed if version else 0,
        relabelled=_relabelled(member, parent if live else None) if version and not member.dropped else 0,
        own_bytes=sum(shard.bytes for shard in own),
        shared_bytes=0 if member.dropped else sum(shard.bytes for shard in every) - sum(shard.bytes for shard in own),
        parent="" if version is None else parent.name if parent else version.parent[:12],
        digest=data.digest,
        modified_ns=files.entry_of(place).modified_ns,
        dropped=member.dropped,
    )


def _relabelled(member: Member, parent: Member | None) -> int | None:
    return None if parent is None else len(_corrections(member) - _corrections(parent))


def _corrections(member: Member) -> set[tuple[str, int, str]]:
    """Returns (shard, named after the digest of its data set; row; class) of each correction of a version."""
    version = member.manifest.version
    if version is None:
        return set()
    table = read_edits(member.uri, version.corrections, CORRECTIONS_SCHEMA)
    own = member.manifest.digest
    found = set()
    kept = pc.equal(table["reason"], KEPT)  # somebody has looked, and found the class right
    columns = (table.filter(pc.invert(kept))[name].to_pylist() for name in ("shard", "row", "class"))
    for shard, row, name in zip(*columns, strict=True):
        base, _, path = shard.partition("/")
        found.add((f"{version.bases[base].digest}/{path}" if base in version.bases else f"{own}/{shard}", row, name))
    return found
