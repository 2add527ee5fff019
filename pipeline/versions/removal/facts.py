"""What a version's manifest and its other files say of its rows as a whole, after some rows are gone."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.edits import DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance, stored_provenance
from pipeline.dataset.records import edit_name
from pipeline.dataset.version import BY_PEOPLE
from pipeline.ingestion.changes.histogram import histogram_without
from pipeline.ingestion.changes.state import PixelState, read_pixels, read_state
from pipeline.ingestion.quality import statistics
from pipeline.ingestion.quality.duplicates import near_duplicates
from pipeline.versions.compaction import read_quarantine
from pipeline.versions.family import Member
from pipeline.versions.removal.find import Found
from pipeline.versions.removal.manifests import Changed


@dataclass(frozen=True)
class Described:
    """A version as it will be."""

    manifest: Manifest
    quarantine: pa.Table | None  # None if it stays as it is, as for those below
    state: pa.Table | None
    pixels: PixelState | None


def describe(member: Member, changed: Changed, found: Found) -> Described:
    """Returns a version with its digest, and its other tables, without the images that are removed."""
    data = changed.manifest
    if member.dropped or data.sources:
        return Described(data.with_digest(), None, None, None)
    quarantine, is_shorter = _without(read_quarantine(member.uri), found)
    state, is_state_shorter = _without(read_state(member.uri), found)
    new_state = state if is_state_shorter else None
    if data is member.manifest and not is_shorter:
        return Described(data, None, new_state, None)
    reasons = Counter(reason.split(":")[0] for reason in quarantine["reason"].to_pylist())
    lines = sorted(_source_lines(member.uri, data, state, quarantine))
    data = replace(
        data,
        source_digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        quarantined=dict(sorted(reasons.items())),
    )
    pixels = None
    if data.quality:
        rows = statistics.pixel_rows(member.uri, data.resolved)
        pixels = _pixels(member, changed, found, rows)
        data = statistics.with_quality(data, rows, pixels.near, pixels.histogram)
    return Described(data.with_digest(), quarantine if is_shorter else None, new_state, pixels)


def _without(table: pa.Table, found: Found) -> tuple[pa.Table, bool]:
    """Returns (a table with the columns split and key without the images that are removed, whether it is shorter)."""
    keep = np.ones(table.num_rows, dtype=bool)
    for split in {split for split, _ in found.names}:
        keys = pa.array(sorted(key for name, key in found.names if name == split), pa.string())
        of_split = pc.equal(table["split"].cast(pa.string()), split)
        keep &= ~pc.and_(of_split, pc.is_in(table["key"], value_set=keys)).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(keep)), not keep.all()


def _pixels(member: Member, changed: Changed, found: Found, rows: pa.Table) -> PixelState:
    before = read_pixels(member.uri)
    histogram = histogram_without(
        member.uri, member.manifest.resolved, None if before is None else before.histogram, changed.gone
    )
    if before is None:
        return PixelState(near_duplicates(member.uri, changed.manifest.resolved, rows), histogram)
    gone = pa.array(sorted(found.pixels), pa.binary(32))
    first, second = (pc.is_in(before.near[name], value_set=gone) for name in ("first", "second"))
    return PixelState(before.near.filter(pc.invert(pc.or_(first, second))), histogram)


def _source_lines(uri: str, data: Manifest, state: pa.Table, quarantine: pa.Table) -> Iterator[str]:
    """Yields the line of `source_digest` for each file of the source, as an ingest does.

    A row counts with its class in the source, which people may have corrected, and rows that people have removed count,
    too: they are in the source.
    """
    removed = None if data.version is None else data.version.deletions
    deletions = read_edits(uri, removed, DELETIONS_SCHEMA)
    by_people = deletions.filter(pc.starts_with(deletions["reason"], BY_PEOPLE))
    for name, split in data.resolved.splits.items():
        known = state.filter(pc.equal(state["split"].cast(pa.string()), name))
        tables = [read_split_provenance(uri, split, ["key", "label", "source_sha256"])]
        for shard, resolved in zip(data.splits[name].shards, split.shards, strict=True):
            gone = by_people.filter(pc.equal(by_people["shard"].cast(pa.string()), edit_name(shard)))["row"]
            if len(gone):
                tables.append(stored_provenance(uri, resolved, ["key", "label", "source_sha256"]).take(gone))
        table = pa.concat_tables(tables)
        at = pc.index_in(table["key"], value_set=known["key"].combine_chunks())
        classes = known["class"].cast(pa.string()).combine_chunks().take(at.combine_chunks())
        given = pc.index_in(classes, value_set=pa.array(data.classes, pa.string()))
        labels = pc.coalesce(given, table["label"].combine_chunks())
        for key, label, sha in zip(
            table["key"].to_pylist(), labels.to_pylist(), table["source_sha256"].to_pylist(), strict=True
        ):
            yield f"{name} {key} {label} {sha.hex()}"
    for row in quarantine.to_pylist():
        yield f"{row['split']} {row['key']} {row['label']} {row['sha256']}"
