"""The versions in a folder, and which files each of them needs."""

import os
from dataclasses import dataclass

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, Shard
from pipeline.dataset.version import folder_of_versions
from pipeline.ingestion.target import WORK
from pipeline.storage import files
from pipeline.storage.places import nearest

DROPPED_NAME = "dropped.json"
"""The manifest of a version that was dropped, while other versions need some of its shards."""


@dataclass(frozen=True)
class Member:
    """A version in the folder."""

    name: str
    """Of its folder."""

    uri: str

    manifest: Manifest
    """As it is in the file."""

    present: frozenset[str] | None = None
    """Names of the files in its folder, if it was dropped: its manifest also names shards that are gone. Else None."""

    @property
    def dropped(self) -> bool:
        """Whether only shards that others need are left of it."""
        return self.present is not None

    @property
    def own_shards(self) -> list[Shard]:
        """The shards in its folder."""
        if self.manifest.sources:
            return []
        own = [shard for split in self.manifest.splits.values() for shard in split.shards if not shard.base]
        if self.present is None:
            return own
        return [shard for shard in own if {shard.path, shard.provenance_path} <= self.present]

    @property
    def named_digests(self) -> set[str]:
        """Digests of the data sets that its manifest names: parent, bases, and sources of a mixture."""
        found = {source.digest for source in self.manifest.sources.values()}
        for version in (self.manifest.version, *(source.version for source in self.manifest.sources.values())):
            if version is not None:
                found |= {version.parent, *(base.digest for base in version.bases.values())}
        return found

    @property
    def needed_files(self) -> set[str]:
        """`real_uri` of each shard, provenance and edit file that it refers to, in its folder and others."""
        shards = [shard for split in self.manifest.resolved.splits.values() for shard in split.shards]
        edits = [each for shard in shards if shard.edits for each in (shard.edits.deletions, shard.edits.corrections)]
        paths = [each.path for each in edits if each]
        paths += [path for shard in shards for path in (shard.path, shard.provenance_path)]
        return {real_uri(files.resolve(self.uri, path)) for path in paths}


def real_uri(uri: str) -> str:
    """Returns the one name of a file: on disks without symbolic links."""
    return os.path.realpath(uri) if files.is_local(uri) else uri.split("?")[0]


def read_member(uri: str) -> Member | None:
    """Returns the version at `uri`, dropped or not; None if there is none. Raises DatasetError if it is damaged."""
    for name, dropped in ((MANIFEST_NAME, False), (DROPPED_NAME, True)):
        place = files.join(uri, name)
        try:
            data = files.read_bytes(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        present = frozenset(name for name, _ in files.list_files(uri)) if dropped else None
        return Member(files.basename(uri), uri, manifest.parse_stored(data, place), present)
    return None


def read_family(folder: str) -> list[Member]:
    """Returns the versions directly below a folder, by name. Raises DatasetError if one of them is damaged."""
    found = (read_member(files.join(folder, name)) for name in files.list_directories(folder))
    return [member for member in found if member is not None]


def check_folder_of_versions(folder: str) -> None:
    """Raises DatasetError, with the remedy, unless `folder` holds versions: folders with a manifest."""
    kind = files.kind(folder)
    if kind == "missing":
        raise DatasetError(f"{folder}: no such folder; give the folder that the versions lie in{nearest(folder)}")
    if kind == "file":
        raise DatasetError(f"{folder}: is a file; give the folder that the versions lie in")
    if manifest.is_dataset(folder):
        raise DatasetError(
            f"{folder}: is a data set itself; give the folder that it lies in: {folder_of_versions(folder)}"
        )


def unfinished(folder: str) -> list[str]:
    """Returns the names of the folders below `folder` into which an ingest is writing, or was when it was stopped."""
    names = []
    for name in files.list_directories(folder):
        uri = files.join(folder, name)
        if not manifest.is_dataset(uri) and files.kind(files.join(uri, WORK)) == "directory":
            names.append(name)
    return names
