"""A data set that a version is made of: its rows are compared with the source as it is now, and kept where it is so.

What a version's manifest says of the rows that it keeps, it takes from here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress, begin
from pipeline.core.shares import counted
from pipeline.dataset.edits import CORRECTIONS_SCHEMA, DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import Manifest, load_stored
from pipeline.dataset.parquet import read_split_provenance, stored_provenance
from pipeline.dataset.records import Shard, Version, edit_name
from pipeline.dataset.version import Changes, by_people
from pipeline.ingestion.changes.find import (
    EARLIER_SCHEMA,
    Earlier,
    Found,
    find_changes,
)
from pipeline.ingestion.changes.state import read_state
from pipeline.ingestion.plan import IngestSettings, settings_of
from pipeline.ingestion.quarantine import read_quarantine
from pipeline.ingestion.shard_task import count_repairs
from pipeline.ingestion.sorting.external_sort import take_rows
from pipeline.ingestion.sorting.source_digest import stored_lines
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources import Index
from pipeline.storage import files

_COLUMNS = ["key", "label", "source_sha256", "repair"]
_LINES_AT_ONCE = 1 << 18
_MOST_DELETED = 0.2  # of the rows that are stored; with more, a compacted data set is read faster
_MOST_BASES = 30  # each night adds a shard or two of few rows: a month of nights (a guess, not measured)


@dataclass(frozen=True)
class Onto:
    """A data set and what has changed in its source since."""

    uri: str
    stored: Manifest
    """As it is in the file."""

    earlier: Earlier
    found: Found

    @property
    def changes(self) -> dict[str, Changes]:
        """What has changed in each split of the data set."""
        return {name: each.changes for name, each in self.found.splits.items() if name in self.stored.splits}

    def new_rows(self, index: Index) -> Index:
        """Returns the index of the rows that are to be written."""
        tables = {
            split: take_rows(table, self.found.splits[split].new)
            for split, table in index.splits.items()
            if len(self.found.splits[split].new)
        }
        return replace(index, splits=tables)

    def source_lines(self, index: Index) -> Iterator[pa.Array]:
        """Yields the lines of `source_digest` for the rows of an index that are stored, or were removed by a person."""
        for split, table in index.splits.items():
            found = self.found.splits[split]
            for rows, earlier in (
                (found.kept, self.earlier.live.get(split, EARLIER_SCHEMA.empty_table())),
                (found.removed, self.earlier.removed_from(split)),
            ):
                at = np.flatnonzero(rows >= 0)
                for start in range(0, len(at), _LINES_AT_ONCE):
                    part = at[start : start + _LINES_AT_ONCE]
                    hashes = take_rows(earlier.select(["source_sha256"]), rows[part])["source_sha256"]
                    chosen = take_rows(table.select(["key", "label"]), part)
                    yield stored_lines(split, chosen.append_column("source_sha256", hashes))

    def repaired(self) -> Counter[str]:
        """Returns the number of kept rows for each repair."""
        counts = Counter[str]()
        for split, each in self.found.splits.items():
            if split in self.earlier.live:
                repairs = self.earlier.live[split]["repair"].take(pa.array(each.kept[each.kept >= 0]))
                counts.update(count_repairs(repairs))
        return counts

    def labels_in_train(self, index: Index) -> npt.NDArray[np.int64]:
        """Returns int64 [classes]: the training images that are stored already, by their class in the source."""
        each = self.found.splits["train"]
        there = np.flatnonzero((each.kept >= 0) | (each.removed >= 0))
        labels = index.splits["train"]["label"].take(pa.array(there)).to_numpy()
        return np.bincount(labels, minlength=len(index.classes))

    def lines(self) -> list[str]:
        """Returns what has changed, in lines for the user."""
        counts, old = self.found.counts(), f"{self.stored.name} {self.stored.digest[:12]}"
        lines = [
            f"onto {old}: {counted(counts.kept, 'row')} kept, {counts.new:,} new, {counts.changed:,} changed, "
            f"{counts.gone:,} gone, {counts.relabelled:,} of another class"
        ]
        if counts.again:
            lines[0] += f"; {counts.again:,} that couldn't be used are tried again"
        if counts.read:
            lines[0] += f"; {counted(counts.read, 'file')} had to be read to be compared"
        if not (counts.new or counts.changed or counts.gone or counts.relabelled):
            lines.append(f"nothing has changed: the version holds the rows of {self.uri}")
        if not counts.kept:
            lines.append(f"warning: the source has no row in common with {self.uri}; is it another source?")
        return lines


@dataclass(frozen=True)
class Parent:
    """A data set that a version is to be made of."""

    uri: str
    """Absolute."""

    recheck: bool = False
    """Whether to read every file of the source, whatever the recorded state says."""

    @cached_property
    def stored(self) -> Manifest:
        """Its manifest as it is in the file. Raises DatasetError if there is none, or if it is a mixture."""
        stored = load_stored(self.uri)
        if stored.sources:
            raise DatasetError(f"onto={self.uri}: is a mixture, which has no versions; take one of its data sets")
        return stored

    def checked_settings(self, out: str, settings: IngestSettings | None) -> IngestSettings:
        """Returns the settings of the data set.

        Raises DatasetError, with the first that differs, if `settings` are others, or if `out` can't refer to it.
        """
        folder = files.resolve(self.uri, "../")
        if files.resolve(out, "../") != folder or out == self.uri:
            beside = files.join(folder, files.basename(out) if out != self.uri else "NAME")
            raise DatasetError(f"out={out}: a version lies beside its parent {self.uri}; give --out {beside}")
        before = self.stored.settings
        if settings is None:
            return settings_of(self.stored)
        now = _flat(asdict(settings))
        for name, value in _flat(before).items():
            if now.get(name) != value:
                raise DatasetError(
                    f"{name}={now.get(name)}, and the data set {self.uri} was made with {name}={value}; a version has "
                    "the settings of its parent: leave yours out, or ingest without --onto"
                )
        return settings


def compare_with(parent: Parent, index: Index, progress: Progress) -> Onto:
    """Returns what has changed in a source since a data set was made of it. Writes nothing."""
    begin(progress, f"comparing with {parent.uri}")
    parent = Parent(parent.uri, parent.recheck)  # read anew: it may have been dropped before the lease was taken
    earlier = _read_earlier(parent.uri, parent.stored)
    found = find_changes(index, earlier, partial(_hashes, progress=progress), parent.recheck)
    return Onto(parent.uri, parent.stored, earlier, found)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    handling = settings.get("handling") or {}
    return {**{name: value for name, value in settings.items() if name != "handling"}, **handling}


def why_compact(stored: Manifest) -> str:
    """Returns why a compacted copy of a version would be read faster, in words; "" if it hardly would."""
    shards = [shard for split in stored.splits.values() for shard in split.shards]
    rows, deleted = sum(shard.rows for shard in shards), sum(sum(shard.deleted) for shard in shards)
    if deleted > _MOST_DELETED * rows:
        return f"{deleted:,} of {rows:,} stored rows are left out"
    if stored.version is not None and len(stored.version.bases) > _MOST_BASES:
        return f"the shards lie in {len(stored.version.bases):,} data sets"
    return ""


def edits_by_people(uri: str, stored: Manifest) -> list[tuple[str, str, str]]:
    """Returns (key, class or "", reason) of what people have corrected and removed: a full ingest would undo it."""
    version, found = stored.version or Version("", {}), []
    for file, schema in ((version.corrections, CORRECTIONS_SCHEMA), (version.deletions, DELETIONS_SCHEMA)):
        rows = by_people(read_edits(uri, file, schema)).to_pylist()
        found += [(row["key"], row.get("class", ""), row["reason"]) for row in rows]
    return sorted(found)


def _read_earlier(uri: str, stored: Manifest) -> Earlier:
    live, left_out = {}, {}
    version = stored.version or Version("", {})
    corrected = by_people(read_edits(uri, version.corrections, CORRECTIONS_SCHEMA))
    removed = by_people(read_edits(uri, version.deletions, DELETIONS_SCHEMA))
    classes = pa.array(stored.classes, pa.string())
    for name, split in stored.resolved.splits.items():
        names = pa.array(list(map(edit_name, stored.splits[name].shards)), pa.string())
        table = read_split_provenance(uri, split, _COLUMNS)
        keys = corrected.filter(pc.is_in(corrected["shard"], value_set=names))["key"].combine_chunks()
        live[name] = _earlier_table(table, classes, pc.is_in(table["key"], value_set=keys))
        parts = []
        for shard, resolved in zip(stored.splits[name].shards, split.shards, strict=True):
            rows = removed.filter(pc.equal(removed["shard"], edit_name(shard)))["row"]
            if len(rows):
                base = version.bases.get(shard.base)  # what the stored labels mean: the version may lack the class
                parts.append(_removed_rows(uri, resolved, rows, classes if base is None else pa.array(base.classes)))
        if parts:
            left_out[name] = pa.concat_tables(parts)
    return Earlier(live, left_out, read_state(uri), _refused(uri))


def _refused(uri: str) -> dict[str, pa.Array]:
    """Returns the keys of the files that a data set lacks because they couldn't be stored, for each split."""
    table = read_quarantine(uri)
    return {
        split: table.filter(pc.equal(table["split"], split))["key"].combine_chunks()
        for split in table["split"].unique().to_pylist()
    }


def _removed_rows(uri: str, shard: Shard, rows: pa.ChunkedArray, classes: pa.Array) -> pa.Table:
    table = stored_provenance(uri, shard, _COLUMNS).take(rows)
    return _earlier_table(table, classes, pa.array([True] * len(rows)))


def _earlier_table(table: pa.Table, classes: pa.Array, by_people: pa.Array) -> pa.Table:
    labels = table["label"].combine_chunks()
    columns = [
        table["key"],
        pa.DictionaryArray.from_arrays(labels, classes),
        table["source_sha256"],
        table["repair"].unify_dictionaries().combine_chunks(),
        by_people,
    ]
    return pa.Table.from_arrays(columns, schema=EARLIER_SCHEMA)


def _hashes(rows: pa.Table, progress: Progress) -> pa.ChunkedArray:
    """Returns binary [N]: SHA-256 of the files of an index table, null where a file can't be read."""
    hashes: list[bytes | None] = [None] * rows.num_rows
    progress("compare files", 0, rows.num_rows)
    for done, (row, data) in enumerate(gather(rows, {}), 1):
        hashes[row] = hashlib.sha256(data).digest()
        progress("compare files", done, rows.num_rows)
    return pa.chunked_array([pa.array(hashes, pa.binary(32))])
