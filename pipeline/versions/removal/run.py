"""Removes images for good: from the shards of all versions in a folder, and from all else that lies there."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress, begin, silent
from pipeline.core.shares import counted
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, is_dataset, load
from pipeline.dataset.version import LEASE, folder_of_versions
from pipeline.ingestion.changes.removed import REMOVED_NAME, removed_json, removed_sources
from pipeline.ingestion.changes.state import (
    HISTOGRAM_NAME,
    NEAR_NAME,
    SOURCES_NAME,
    read_pixels,
    write_pixels,
    write_state,
)
from pipeline.ingestion.publish import dataset_card
from pipeline.ingestion.quarantine import write_quarantine
from pipeline.ingestion.target import CARD_NAME, QUALITY_NAME, QUARANTINE_NAME, WORK
from pipeline.storage import files, lease
from pipeline.versions.compare import row_name
from pipeline.versions.family import DROPPED_NAME, Member, check_folder_of_versions, read_family, unfinished
from pipeline.versions.removal.facts import describe
from pipeline.versions.removal.find import Found, find
from pipeline.versions.removal.journal import Journal, Ready
from pipeline.versions.removal.manifests import Changed, Rewriting
from pipeline.versions.removal.search import search
from pipeline.versions.removal.shards import rewrite

REWRITTEN_NAME = "rewritten.json"
"""{"digests": {digest of a version before a removal: digest now}}, in the folder of the versions."""


_DESCRIPTIONS = (QUALITY_NAME, QUARANTINE_NAME, CARD_NAME, SOURCES_NAME, NEAR_NAME, HISTOGRAM_NAME)


class _Rewritten(msgspec.Struct, forbid_unknown_fields=True):
    """The content of `rewritten.json`."""

    digests: dict[str, str]


@dataclass(frozen=True)
class Forgotten:
    """What was removed."""

    rows: tuple[str, ...]
    """SPLIT/KEY of each image that was removed, those with the same pixels as one that was named included."""

    versions: dict[str, str]
    """Name of each version that was rewritten, and its new digest."""

    searched_files: int
    """Files in which no string of the images' bytes was found afterwards: all that lie in the folder."""

    searched_bytes: int


def forget(place: str | os.PathLike[str], keys: Collection[str], *, progress: Progress = silent) -> Forgotten:
    """Removes images for good from all versions in a folder, and proves by a search that their bytes are gone.

    place: path or URI of the folder, or of a version in it. keys: KEY or SPLIT/KEY; images with the same source bytes
    or the same pixels go, too. The shards in question are written once more under new names, manifests get new digests
    (`rewritten.json`), lists, thumbnails and pages lose the images, and later ingests into the folder leave the files
    out (`removed.json`). Then every file in the folder is searched for each 64-byte string of the images.

    An interrupted removal goes on when it is called again. Raises DatasetError if a key is in no version, an ingest is
    unfinished in the folder, or the search finds something: the message names it, and the next call searches again.
    """
    folder = files.absolute(os.fspath(place))
    folder = folder_of_versions(folder) if is_dataset(folder) else folder
    check_folder_of_versions(folder)
    with lease.hold_lease(files.join(folder, *LEASE), folder, progress) as held:
        removal = _Removal(folder, Journal(folder), held, progress)
        done = removal.run(set(keys))
        searched = search(folder, removal.journal, progress)
        removal.journal.end()
    return Forgotten(tuple(done.rows), done.versions, *searched)


@dataclass(frozen=True)
class _Removal:
    """One removal, while the lease on the folder is held."""

    folder: str
    journal: Journal
    held: lease.Lease
    progress: Progress

    def run(self, keys: set[str]) -> Ready:
        """Finishes an interrupted removal, and removes the images with these keys. Returns what was done."""
        nothing = Ready([], [], [], [], {})
        earlier = self.journal.ready()
        if earlier is not None:
            self._carry_out(earlier)
        begun = self.journal.begun()
        self.journal.begin(keys | set(begun or ()))
        written: list[str] = []
        try:
            found, members = self._found(keys | set(begun or ()), sorted(keys - self.journal.removed_keys()))
            if not found.names:
                self.journal.give_up()
                return earlier or nothing
            ready = self._prepare(found, members, written)
        except DatasetError:  # nothing is changed yet
            files.delete_files(self.folder, written)
            self.journal.give_up()
            raise
        self.journal.write_ready(ready)
        self._carry_out(ready)
        return ready

    def _found(self, keys: set[str], must_be_found: Sequence[str]) -> tuple[Found, list[Member]]:
        """Returns what is to be removed, and the versions. Raises DatasetError if a key is in none of them."""
        if waiting := unfinished(self.folder):
            raise DatasetError(
                f"{files.join(self.folder, waiting[0])}: an ingest into it is unfinished, which may hold the images; "
                "finish it, or delete the folder, then run the same command again"
            )
        members = read_family(self.folder)
        begin(self.progress, "looking for the images")
        found = find(members, keys)
        names = {key for _, key in found.names} | {row_name(*name) for name in found.names}
        if unknown := [key for key in must_be_found if key not in names]:
            raise DatasetError(
                f"key={unknown[0]}: in no version in {self.folder}"
                + (f", and {counted(len(unknown) - 1, 'other key')} neither" if len(unknown) > 1 else "")
                + "; give KEY or SPLIT/KEY as `versions compare` names rows; nothing was removed"
            )
        return found, members

    def _prepare(self, found: Found, members: Sequence[Member], written: list[str]) -> Ready:
        """Writes the new shards, and stages all else that changes. written: receives the names of new files."""
        shards, deletions, copies = {}, [], []
        held = {(member.uri, shard.path): (member, shard) for member in members for shard in member.own_shards}
        for number, ((uri, path), gone) in enumerate(sorted(found.rows.items())):
            member, shard = held[uri, path]
            shards[uri, path] = new = rewrite(member, shard, gone)
            deletions += [f"{member.name}/{shard.path}", f"{member.name}/{shard.provenance_path}"]
            if new.shard is not None:
                written += [f"{member.name}/{new.shard.path}", f"{member.name}/{new.shard.provenance_path}"]
            copies += self.journal.stage_traces("images", new.images)
            copies += self.journal.stage_traces("derived", new.derived)
            self.progress("rewrite", number + 1, len(found.rows))
            self.held.check()
        rewriting = Rewriting(shards)
        pages, versions, edits = [], dict[str, str](), set[str]()
        for member in _bases_first(members):
            deletions += [f"{member.name}/{WORK}/{name}" for name, _ in files.list_files(files.join(member.uri, WORK))]
            staged, manifest = self._stage(member, found, rewriting, written)
            copies += staged
            edits |= _edit_files(member, manifest or member.manifest)
            if manifest is None:
                continue
            rewriting.done(member.manifest, manifest)
            versions[member.name] = manifest.digest
            deletions += _edit_files(member, member.manifest)
            if member.dropped:  # of an interrupted drop: nobody reads them, and they show and name images
                deletions += [f"{member.name}/{name}" for name in _DESCRIPTIONS]
            elif files.exists(files.join(member.uri, QUALITY_NAME)):
                pages.append(member.name)
        copies += self._stage_records(found, rewriting)
        rows = {row_name(*name) for name in found.names}
        copies.append(self.journal.stage_removed_keys(rows | {key for _, key in found.names}))
        deletions = [name for name in dict.fromkeys(deletions) if name not in edits]  # a mixture may need some
        return Ready(copies, pages, deletions, sorted(rows), versions)

    def _stage(
        self, member: Member, found: Found, rewriting: Rewriting, written: list[str]
    ) -> tuple[list[str], Manifest | None]:
        """Stages the files of a version that change. Returns their names, the manifest last, and the new manifest.

        None if the manifest stays as it is.
        """
        concerned = rewriting.concerns(member)
        changed = rewriting.changed(member) if concerned else Changed(member.manifest)
        written += _edit_files(member, changed.manifest) - _edit_files(member, member.manifest) - set(written)
        described = describe(member, changed, found)
        place, names = self.journal.staged(member.name), []
        for name, table, write in (
            (QUARANTINE_NAME, described.quarantine, write_quarantine),
            (SOURCES_NAME, described.state, write_state),
        ):
            if table is not None:
                write(place, table)
                names.append(name)
        if described.pixels is not None:
            write_pixels(place, described.pixels)
            names += [NEAR_NAME, HISTOGRAM_NAME]
        manifest = described.manifest if described.manifest.digest != member.manifest.digest else None
        if manifest is not None:
            name = DROPPED_NAME if member.dropped else MANIFEST_NAME
            files.write_bytes(files.join(place, name), manifest.to_json())
            if not (member.dropped or manifest.sources) and files.exists(files.join(member.uri, CARD_NAME)):
                files.write_bytes(files.join(place, CARD_NAME), dataset_card(manifest).encode())
                names.append(CARD_NAME)
            names.append(name)
        return [f"{member.name}/{name}" for name in names], manifest

    def _stage_records(self, found: Found, rewriting: Rewriting) -> list[str]:
        """Stages what says in the folder which source files were removed, and which digests are new."""
        digests = self._rewritten()
        digests = {old: rewriting.digests.get(now, now) for old, now in digests.items()} | rewriting.digests
        files.write_json(self.journal.staged(REWRITTEN_NAME), {"digests": digests}, pretty=True)
        files.write_bytes(self.journal.staged(REMOVED_NAME), removed_json(removed_sources(self.folder) | found.sources))
        return [REMOVED_NAME, REWRITTEN_NAME]

    def _rewritten(self) -> dict[str, str]:
        remedy = "restore it from a copy, or delete it: then nothing tells which digests versions had before"
        try:
            return files.read_record(files.join(self.folder, REWRITTEN_NAME), _Rewritten, remedy).digests
        except FileNotFoundError:
            return {}

    def _carry_out(self, ready: Ready) -> None:
        """Puts what was staged in its place, and deletes what it replaces; may be repeated."""
        from pipeline.ingestion.quality import report  # matplotlib takes a second to load

        self.held.check()
        begin(self.progress, "replacing manifests and shards")
        self.journal.copy(ready)
        for name in ready.pages:
            uri = files.join(self.folder, name)
            pixels = read_pixels(uri)
            histogram = np.zeros(768, dtype=np.int64) if pixels is None else pixels.histogram
            files.write_bytes(files.join(uri, QUALITY_NAME), report.render(uri, load(uri), histogram).encode())
        self.held.check()
        self.journal.delete(ready)


def _edit_files(member: Member, manifest: Manifest) -> set[str]:
    """Returns the names, below the folder of the versions, of the edit files that a version or a mixture needs."""
    folder, found = folder_of_versions(member.uri), set[str]()
    versions = [
        (member.uri, manifest.version),
        *((each.uri.rstrip("/"), each.version) for each in manifest.sources.values()),
    ]
    for uri, version in versions:
        if version is not None and folder_of_versions(uri) == folder:
            edits = (version.deletions, version.corrections)
            found |= {f"{files.basename(uri)}/{each.path}" for each in edits if each}
    return found


def _bases_first(members: Sequence[Member]) -> list[Member]:
    """Returns the versions in an order in which each follows those that its manifest names."""
    ordered: list[Member] = []
    todo = list(members)
    while todo:
        waiting = {member.manifest.digest for member in todo}
        free = [member for member in todo if not member.named_digests & waiting]
        if not free:
            raise DatasetError(f"{todo[0].uri}: refers to itself through other versions; its manifest is damaged")
        ordered += free
        todo = [member for member in todo if member not in free]
    return ordered
