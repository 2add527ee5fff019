"""What a version's manifest and its other files say of its rows as a whole, after some rows are gone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.edits import DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance, stored_provenance
from pipeline.dataset.records import edit_name
from pipeline.dataset.version import by_people
from pipeline.ingestion.changes.histogram import histogram_without
from pipeline.ingestion.changes.state import PixelState, read_pixels, read_state
from pipeline.ingestion.quality import statistics
from pipeline.ingestion.quality.duplicates import near_duplicates
from pipeline.ingestion.quarantine import read_quarantine
from pipeline.ingestion.sorting.source_digest import lines_of, source_digest, stored_lines
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
    refused, known = read_quarantine(member.uri), read_state(member.uri)
    quarantine = refused.filter(pa.array([_stays(row, found) for row in refused.to_pylist()], pa.bool_()))
    state = _without(known, _lost_names(member, changed))
    is_shorter = quarantine.num_rows < refused.num_rows
    new_state = state if state.num_rows < known.num_rows else None
    if data is member.manifest and not is_shorter:
        return Described(data, None, new_state, None)
    reasons = Counter(reason.split(":")[0] for reason in quarantine["reason"].to_pylist())
    data = replace(
        data,
        source_digest=source_digest(_source_lines(member.uri, data, state, quarantine)),
        quarantined=dict(sorted(reasons.items())),
    )
    pixels = None
    if data.quality:
        rows = statistics.pixel_rows(member.uri, data.resolved)
        pixels = _pixels(member, changed, found, rows)
        data = statistics.with_quality(data, rows, pixels.near, pixels.histogram)
    return Described(data.with_digest(), quarantine if is_shorter else None, new_state, pixels)


def _stays(refused: dict[str, Any], found: Found) -> bool:
    """Whether a line of the quarantine is of another file than those that are removed, which may be called the same."""
    if refused["sha256"]:
        return bytes.fromhex(refused["sha256"]) not in found.sources
    return (refused["split"], refused["key"]) not in found.names


def _lost_names(member: Member, changed: Changed) -> dict[str, set[str]]:
    """Returns {split: keys of the version's own rows that it loses}: another file may have such a name elsewhere.

    Rows that people have removed count, unless the source has another file under the name since.
    """
    names = dict[str, set[str]]()
    data = member.manifest
    if changed.manifest is data:
        return names
    before, now = _removed_by_people(member.uri, data), _removed_by_people(member.uri, changed.manifest)
    for name, split in data.resolved.splits.items():
        keys = read_split_provenance(member.uri, split, ["key"])["key"]
        lost = set(keys.take(pa.array(changed.gone[name])).to_pylist())
        of_people = before.get(name, set()) - now.get(name, set())
        present = keys.filter(pc.is_in(keys, value_set=pa.array(sorted(of_people), pa.string())))
        names[name] = lost | (of_people - set(present.to_pylist()))
    return names


def _removed_by_people(uri: str, data: Manifest) -> dict[str, set[str]]:
    """Returns {split: keys of the rows that people have removed from a version}."""
    splits = {edit_name(shard): name for name, split in data.splits.items() for shard in split.shards}
    found = dict[str, set[str]]()
    deletions = _deletions_by_people(uri, data)
    for shard, key in zip(deletions["shard"].to_pylist(), deletions["key"].to_pylist(), strict=True):
        found.setdefault(splits[shard], set()).add(key)
    return found


def _deletions_by_people(uri: str, data: Manifest) -> pa.Table:
    return by_people(read_edits(uri, None if data.version is None else data.version.deletions, DELETIONS_SCHEMA))


def _without(table: pa.Table, names: Mapping[str, set[str]]) -> pa.Table:
    """Returns a table with the columns split and key without the rows of these names, {split: keys}."""
    keep = np.ones(table.num_rows, dtype=bool)
    for split, keys in names.items():
        of_split = pc.equal(table["split"].cast(pa.string()), split)
        is_one = pc.is_in(table["key"], value_set=pa.array(sorted(keys), pa.string()))
        keep &= ~pc.and_(of_split, is_one).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(keep))


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


def _source_lines(uri: str, data: Manifest, state: pa.Table, quarantine: pa.Table) -> Iterator[pa.Array]:
    """Yields the lines of `source_digest` for the files of the source, as an ingest does.

    A row counts with its class in the source, which people may have corrected. Rows that people have removed count,
    too, while the source has them: their stored labels may be of a class that is gone.
    """
    removed = _deletions_by_people(uri, data)
    for name, split in data.resolved.splits.items():
        known = state.filter(pc.equal(state["split"].cast(pa.string()), name))
        tables = [read_split_provenance(uri, split, ["key", "label", "source_sha256"])]
        for shard, resolved in zip(data.splits[name].shards, split.shards, strict=True):
            gone = removed.filter(pc.equal(removed["shard"], edit_name(shard)))["row"]
            if len(gone):
                left_out = stored_provenance(uri, resolved, ["key", "label", "source_sha256"]).take(gone)
                is_there = pc.is_in(left_out["key"], value_set=known["key"].combine_chunks())
                is_live = pc.is_in(left_out["key"], value_set=tables[0]["key"].combine_chunks())
                tables.append(left_out.filter(pc.and_not(is_there, is_live)) if known.num_rows else left_out)
        table = pa.concat_tables(tables)
        at = pc.index_in(table["key"], value_set=known["key"].combine_chunks())
        classes = known["class"].cast(pa.string()).combine_chunks().take(at.combine_chunks())
        given = pc.index_in(classes, value_set=pa.array(data.classes, pa.string()))
        labels = pc.coalesce(given, table["label"].combine_chunks())
        if table.num_rows:
            yield stored_lines(name, table.set_column(table.column_names.index("label"), "label", labels))
    yield from lines_of(f"{row['split']} {row['key']} {row['label']} {row['sha256']}" for row in quarantine.to_pylist())
