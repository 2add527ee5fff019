"""Drops a version: its manifest goes, and with it every file that no other version in the folder needs."""

import os
from dataclasses import dataclass

from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.dataset.version import LEASE, check_not_rewritten, folder_of_versions
from pipeline.storage import files, lease
from pipeline.versions.family import DROPPED_NAME, read_family, read_member, real_uri, unfinished


@dataclass(frozen=True)
class Dropped:
    """What became of a version that was dropped, and of what was left of versions that were dropped before."""

    deleted_files: int

    deleted_bytes: int

    kept_shards: int
    """Shards of dropped versions that stay, because other versions need them."""

    needed_by: tuple[str, ...]
    """Names of the versions that need them."""

    unfinished: tuple[str, ...]
    """Names of the folders with an unfinished ingest, for which all shards of the dropped versions stay."""


def drop_version(uri: str | os.PathLike[str]) -> Dropped:
    """Drops the version at a path or URI. Nothing of another version in the folder that it lies in is lost.

    Its shards that other versions refer to stay, with `dropped.json` beside them, until none does: then the next drop
    in this folder removes them. While an ingest is unfinished in the folder, all shards stay: it may be making a
    version of this one. An interrupted drop goes on when it is called again. Raises DatasetError if there is no version
    at `uri`, one in the folder is damaged, another process drops or rewrites versions there, or a removal of images was
    interrupted, whose new shards no manifest names yet.
    """
    uri = files.absolute(os.fspath(uri))
    folder = folder_of_versions(uri)
    if read_member(uri) is None:
        raise DatasetError(f"{uri}: no {MANIFEST_NAME}, so no version; `versions list {folder}` names those there are")
    with lease.hold_lease(files.join(folder, *LEASE), folder) as held:
        check_not_rewritten(folder)
        read_family(folder)  # raises before anything is changed
        member = read_member(uri)
        if member is not None and not member.dropped:
            # The copy first: whenever this is interrupted, one of both files says what the shards are.
            files.write_bytes(files.join(uri, DROPPED_NAME), member.manifest.to_json())
            files.delete_files(uri, [MANIFEST_NAME])
        held.check()
        # After the manifest is gone: an ingest that makes a version of this one has begun its folder before it reads
        # the manifest. So either it finds none, or its folder is found here.
        return _clean(folder, held)


def _clean(folder: str, held: lease.Lease) -> Dropped:
    """Removes the files of all dropped versions that no other needs."""
    waiting = tuple(unfinished(folder))
    members = read_family(folder)
    alive = [member for member in members if not member.dropped]
    needs = {member.name: member.needed_files for member in alive}
    needed_by_any = set[str]().union(*needs.values())
    kept: set[str] = set()
    deleted = deleted_bytes = 0
    for member in members:
        if not member.dropped:
            continue
        needed = member.needed_files if waiting else needed_by_any
        present = files.list_files(member.uri)
        stay = {name for name, _ in present if real_uri(files.join(member.uri, name)) in needed}
        kept |= {real_uri(files.join(member.uri, shard.path)) for shard in member.own_shards if shard.path in stay}
        gone = {name: size for name, size in present if name not in stay and (not stay or name != DROPPED_NAME)}
        held.check()
        # What names the others goes last, so that an interrupted drop is found and goes on.
        files.delete_files(member.uri, [name for name in gone if name != DROPPED_NAME])
        if not stay:
            files.delete_tree(member.uri)
        deleted += len(gone)
        deleted_bytes += sum(gone.values())
    users = tuple(sorted(name for name, needed in needs.items() if needed & kept))
    return Dropped(deleted, deleted_bytes, len(kept), users, waiting)
