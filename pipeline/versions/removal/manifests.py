"""The manifests of all versions in a folder after some stored rows are gone: shards, edits, counts, and new digests."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.dataset.edits import (
    CORRECTIONS_NAME,
    CORRECTIONS_SCHEMA,
    DELETIONS_NAME,
    DELETIONS_SCHEMA,
    as_edited,
    edit_file,
    live_rows,
    read_edits,
    rows_per_group,
)
from pipeline.dataset.manifest import SCHEMA_VERSION, EditFile, Manifest, Shard, Source, Split, Version, load_stored
from pipeline.dataset.mixture import mixture_of
from pipeline.dataset.parquet import parquet_bytes, stored_provenance
from pipeline.dataset.records import Rows, edit_name
from pipeline.dataset.version import NAME_DIGITS
from pipeline.ingestion.shard_task import count_repairs
from pipeline.storage import files
from pipeline.versions.family import Member
from pipeline.versions.removal.dropped_parts import dropped_part, is_there, without_lost
from pipeline.versions.removal.shards import Rewritten


@dataclass
class Changed:
    """A version without the rows that are removed."""

    manifest: Manifest
    """Without source digest, quarantined files and quality, which follow from the rows."""

    gone: dict[str, Rows] = field(default_factory=dict)
    """{split: rows of it, as the version had them before, that are removed; ascending}."""


@dataclass
class Rewriting:
    """Makes the new manifests, those of bases before those of the versions that refer to them."""

    shards: Mapping[tuple[str, str], Rewritten]
    """{(URI of the version that holds it, its path before): the shard without the rows that are removed}."""

    digests: dict[str, str] = field(default_factory=dict)
    """{digest before: digest now} of the versions that are done."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    """{digest before: manifest now}."""

    def concerns(self, member: Member) -> bool:
        """Whether the version must be rewritten because of its shards, bases or sources."""
        data = member.manifest
        if data.sources:
            parts = [dropped_part(member, name) for name, source in data.sources.items() if not is_there(source)]
            return bool(member.named_digests & self.digests.keys()) or any(map(self.concerns, parts))
        shards = [shard for split in data.splits.values() for shard in split.shards]
        return bool(member.named_digests & self.digests.keys()) or any(
            (_owner(member, s), s.path) in self.shards for s in shards
        )

    def done(self, before: Manifest, now: Manifest) -> None:
        """Takes down that a version has a new manifest."""
        self.digests[before.digest], self.manifests[before.digest] = now.digest, now

    def changed(self, member: Member) -> Changed:
        """Returns a version as it will be. Writes its new edit files beside the old ones. Raises DatasetError."""
        data = member.manifest
        if data.sources:
            parts = {name: self._part(member, name, source) for name, source in data.sources.items()}
            return Changed(mixture_of(data.name, {name: each.uri for name, each in data.sources.items()}, parts))
        if member.dropped:
            splits = {name: replace(split, shards=self._own(member, split)) for name, split in data.splits.items()}
            now = replace(data, splits=splits, version=None, schema_version=SCHEMA_VERSION)
            return Changed(replace(now, quarantined={}, repaired={}, leaked={}, quality={}))  # some name rows
        found = Changed(data)
        splits, repaired = {}, Counter(data.repaired)
        for name, split in data.splits.items():
            splits[name] = self._split(member, name, found, repaired)
            if not splits[name].rows and split.rows:
                raise DatasetError(
                    f"{member.uri}: split {name!r} would have no image left; drop this version first (versions drop)"
                )
        version = data.version and self._version(member, data.version, splits)
        found.manifest = replace(data, splits=splits, version=version, repaired=dict(+repaired))
        return found

    def _part(self, mixture: Member, name: str, source: Source) -> Manifest:
        """Returns the manifest, as it will be, of a data set that a mixture is made of. Raises DatasetError."""
        if is_there(source):
            return self.manifests.get(source.digest) or load_stored(source.uri)
        part = dropped_part(mixture, name)
        if not self.concerns(part):
            return part.manifest
        changed = self.changed(part)
        return replace(changed.manifest, leaked=without_lost(part, changed.gone)).with_digest()

    def _own(self, member: Member, split: Split) -> tuple[Shard, ...]:
        """Returns the shards in the folder of a dropped version, of which nothing else is left."""
        shards, own = [], {each.path for each in member.own_shards}
        for shard in split.shards:
            if not shard.base and shard.path in own:
                rewritten = self.shards.get((member.uri, shard.path))
                shards.append(replace(shard, deleted=()) if rewritten is None else rewritten.shard)
        return tuple(each for each in shards if each is not None)

    def _split(self, member: Member, name: str, found: Changed, repaired: Counter[str]) -> Split:
        """Returns a split without the rows that are removed; adds these to `found` and takes them off `repaired`."""
        data = member.manifest
        per_class = np.array(data.splits[name].rows_per_class)
        shards, gone, first = [], [np.empty(0, np.int64)], 0
        for shard, resolved in zip(data.splits[name].shards, data.resolved.splits[name].shards, strict=True):
            renamed = replace(shard, base=self._base_name(data, shard.base))
            rewritten = self.shards.get((_owner(member, shard), shard.path))
            if rewritten is None:
                shards.append(renamed)
            else:
                live = live_rows(member.uri, resolved)
                lost = live[rewritten.new_rows[live] < 0]
                table = stored_provenance(member.uri, resolved, ["label", "repair"]).take(pa.array(lost))
                labels = as_edited(member.uri, resolved, table, lost)["label"].to_numpy()
                per_class = per_class - np.bincount(labels, minlength=len(per_class))
                repaired.subtract(count_repairs(table["repair"]))
                gone.append(first + np.searchsorted(live, lost))
                shards += [] if rewritten.shard is None else [_in_version(renamed, live, rewritten)]
            first += resolved.live_rows
        found.gone[name] = np.concatenate(gone)
        return Split(int(per_class.sum()), tuple(per_class.tolist()), tuple(shards))

    def _base_name(self, data: Manifest, name: str) -> str:
        if not name or data.version is None:
            return ""
        digest = data.version.bases[name].digest
        return _name_of(self.digests.get(digest, digest))

    def _version(self, member: Member, version: Version, splits: Mapping[str, Split]) -> Version:
        used = {shard.base for split in splits.values() for shard in split.shards}
        bases = [replace(base, digest=self.digests.get(base.digest, base.digest)) for base in version.bases.values()]
        names = {edit_name(shard) for split in splits.values() for shard in split.shards}
        new_names = self._new_names(member)
        return Version(
            self.digests.get(version.parent, version.parent),
            {_name_of(base.digest): base for base in bases if _name_of(base.digest) in used},
            _edits(member.uri, version.deletions, (DELETIONS_NAME, DELETIONS_SCHEMA), new_names, names),
            _edits(member.uri, version.corrections, (CORRECTIONS_NAME, CORRECTIONS_SCHEMA), new_names, names),
        )

    def _new_names(self, member: Member) -> dict[str, tuple[str, Rows | None]]:
        """Returns {name of a shard in the edit files before: (its name now, row now of each stored row or None)}."""
        data, found = member.manifest, dict[str, tuple[str, Rows | None]]()
        for split in data.splits.values():
            for shard in split.shards:
                base = self._base_name(data, shard.base)
                rewritten = self.shards.get((_owner(member, shard), shard.path))
                if rewritten is None:
                    found[edit_name(shard)] = (edit_name(replace(shard, base=base)), None)
                elif rewritten.shard is not None:
                    now = replace(rewritten.shard, base=base)
                    found[edit_name(shard)] = (edit_name(now), rewritten.new_rows)
        return found


def _name_of(digest: str) -> str:
    """Returns the name that versions give to a base with this digest."""
    return digest[:NAME_DIGITS]


def _owner(member: Member, shard: Shard) -> str:
    """Returns the URI of the version in whose folder a shard lies."""
    version = member.manifest.version
    return files.resolve(member.uri, version.bases[shard.base].uri) if shard.base and version else member.uri


def _in_version(shard: Shard, live: Rows, rewritten: Rewritten) -> Shard:
    """Returns the new shard as a version refers to it. live: stored rows of the old one that it doesn't leave out."""
    new = rewritten.shard
    assert new is not None
    still_live = rewritten.new_rows[live]
    deleted = np.delete(np.arange(new.rows), still_live[still_live >= 0])
    return replace(new, base=shard.base, deleted=rows_per_group(new, deleted) if len(deleted) else ())


def _edits(
    uri: str,
    file: EditFile | None,
    kind: tuple[str, pa.Schema],
    new_names: Mapping[str, tuple[str, Rows | None]],
    used: set[str],
) -> EditFile | None:
    """Writes an edit file with the shards' names and rows of now, under a name of its own; None if no edit is left."""
    if file is None:
        return None
    parts = []
    for part in _by_shard(read_edits(uri, file, kind[1])):
        name, new_rows = new_names.get(part["shard"][0].as_py(), ("", None))
        rows = part["row"].to_numpy() if new_rows is None else new_rows[part["row"].to_numpy()]
        if name in used:
            part = part.set_column(0, "shard", pa.array([name] * len(rows), pa.string()))
            parts.append(part.set_column(1, "row", pa.array(rows, pa.int32())).filter(pa.array(rows >= 0)))
    if not sum(part.num_rows for part in parts):
        return None
    table = pa.concat_tables(parts).sort_by([("shard", "ascending"), ("row", "ascending")])
    data = parquet_bytes(table)
    path = f"{kind[0].removesuffix('.parquet')}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"
    files.write_bytes(files.join(uri, path), data)
    return edit_file(path, data)


def _by_shard(edits: pa.Table) -> Iterator[pa.Table]:
    """Yields the edits of each shard; they are sorted by shard."""
    codes = edits["shard"].combine_chunks().indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    yield from (edits.slice(start, stop - start) for start, stop in itertools.pairwise(starts) if stop > start)
