"""What people have corrected and removed in a version, kept in its compacted copy.

Images that people have removed are stored in the copy where an ingest of the source would store them, and left out by
its edit files, so that a later ingest finds their SHA-256 and leaves them out again. A label that a person has set is
stored, and its correction says that a person has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.edits import (
    CORRECTIONS_NAME,
    CORRECTIONS_SCHEMA,
    DELETIONS_NAME,
    DELETIONS_SCHEMA,
    edit_file,
    live_rows,
    read_edits,
    rows_by_shard,
    rows_per_group,
)
from pipeline.dataset.manifest import EditFile, Manifest, Shard, Split, Version
from pipeline.dataset.parquet import parquet_bytes, read_split_provenance, stored_provenance
from pipeline.dataset.records import Rows, edit_name
from pipeline.dataset.version import by_people, write_edits
from pipeline.ingestion.target import WORK
from pipeline.storage import files


@dataclass(frozen=True)
class PeoplesEdits:
    """Edits of people in a version, and the version with the images that they have removed."""

    whole: Manifest
    """Resolved: rows that people have removed are in their place, those that can't be kept excepted."""

    removed: Mapping[str, pa.Table]
    """{split: a table of row (in `whole`), key, reason}."""

    corrected: Mapping[str, pa.Table]
    """{split: a table of row (in `whole`), key, class, reason}."""

    num_forgotten: int
    """Removed images that can't be kept: of a class that is gone, or of a key that another image has."""


def peoples_edits(uri: str, stored: Manifest, state: pa.Table, out: str) -> PeoplesEdits:
    """Returns the edits of people in the version at `uri`. Writes the other deletions to the work folder of `out`.

    stored: its manifest as it is in the file. state: of `changes.state.STATE_SCHEMA`; removed images that the source
    lacks by now aren't kept.
    """
    version = stored.version or Version("", {})
    deletions = read_edits(uri, version.deletions, DELETIONS_SCHEMA)
    removed, corrected = by_people(deletions), by_people(read_edits(uri, version.corrections, CORRECTIONS_SCHEMA))
    kept = _kept(uri, stored, removed, state)
    file = _without(deletions, kept, files.join(out, WORK, DELETIONS_NAME))
    revived = rows_by_shard(kept.set_column(0, "shard", kept["shard"].dictionary_encode()))
    splits: dict[str, Split] = {}
    tables: tuple[dict[str, pa.Table], dict[str, pa.Table]] = ({}, {})
    for name, split in stored.resolved.splits.items():
        names = [edit_name(shard) for shard in stored.splits[name].shards]
        shards = tuple(
            _with_rows(shard, file, revived.get(each)) for shard, each in zip(split.shards, names, strict=True)
        )
        splits[name] = Split(sum(shard.live_rows for shard in shards), split.rows_per_class, shards)
        for found, edits in zip(tables, (kept, corrected), strict=True):
            found[name] = _in_split(uri, shards, names, edits)
    whole = replace(stored.resolved, splits=splits)
    return PeoplesEdits(whole, tables[0], tables[1], removed.num_rows - kept.num_rows)


def _kept(uri: str, stored: Manifest, removed: pa.Table, state: pa.Table) -> pa.Table:
    """Returns the removals of people, of DELETIONS_SCHEMA, whose images the copy can hold: one for each key."""
    parts = [removed.slice(0, 0)]
    for name, split in stored.resolved.splits.items() if removed.num_rows else ():
        known = state.filter(pc.equal(state["split"].cast(pa.string()), name))["key"].combine_chunks()
        live = read_split_provenance(uri, split, ["key"])["key"].combine_chunks()
        taken = set[str]()
        for shard, resolved in reversed(list(zip(stored.splits[name].shards, split.shards, strict=True))):
            mine = removed.filter(pc.equal(removed["shard"], edit_name(shard)))
            usable = _has_class(uri, resolved, mine["row"].to_numpy())
            usable &= ~pc.is_in(mine["key"], value_set=live).to_numpy()
            if state.num_rows:
                usable &= pc.is_in(mine["key"], value_set=known).to_numpy()
            usable &= np.array([key not in taken for key in mine["key"].to_pylist()], dtype=bool)
            parts.append(mine.filter(pa.array(usable, pa.bool_())))
            taken |= set(parts[-1]["key"].to_pylist())
    return pa.concat_tables(parts)


def _has_class(uri: str, shard: Shard, rows: Rows) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Returns bool [N]: the stored rows whose class the version has."""
    labels = shard.edits.labels if shard.edits else None
    if labels is None or not len(rows):
        return np.ones(len(rows), dtype=bool)
    stored = stored_provenance(uri, shard, ["label"])["label"].take(pa.array(rows)).to_numpy()
    return np.array(labels)[stored] >= 0


def _without(deletions: pa.Table, kept: pa.Table, place: str) -> EditFile | None:
    """Writes deletions without some of them, and returns the reference to the file; None if none is left."""
    gone = set(zip(kept["shard"].to_pylist(), kept["row"].to_pylist(), strict=True))
    places = zip(deletions["shard"].to_pylist(), deletions["row"].to_pylist(), strict=True)
    left = deletions.filter(pa.array([each not in gone for each in places], pa.bool_()))
    if not left.num_rows:
        return None
    data = parquet_bytes(left)
    files.write_bytes(place, data)
    return edit_file(place, data)


def _with_rows(shard: Shard, deletions: EditFile | None, rows: Rows | None) -> Shard:
    """Returns a shard with other deletions, in which some rows are no longer left out."""
    if shard.edits is None:
        return shard
    shard = replace(shard, edits=replace(shard.edits, deletions=deletions))
    if rows is None:
        return shard
    deleted = tuple(np.subtract(shard.deleted, rows_per_group(shard, rows)).tolist())
    return replace(shard, deleted=deleted if any(deleted) else ())


def _in_split(uri: str, shards: Sequence[Shard], names: Sequence[str], edits: pa.Table) -> pa.Table:
    """Returns edits of the shards of a split with rows of the split in place of stored rows."""
    parts, first = [edits.slice(0, 0).drop_columns(["shard"]).cast(_in_rows(edits))], 0
    for shard, name in zip(shards, names, strict=True):
        mine = edits.filter(pc.equal(edits["shard"], name))
        if mine.num_rows:
            rows = first + np.searchsorted(live_rows(uri, shard), mine["row"].to_numpy())
            mine = mine.drop_columns(["shard"]).set_column(0, "row", pa.array(rows, pa.int64()))
            parts.append(mine.cast(_in_rows(edits)))
        first += shard.live_rows
    return pa.concat_tables(parts).sort_by("row")


def _in_rows(edits: pa.Table) -> pa.Schema:
    return pa.schema([("row", pa.int64()), *((field.name, field.type) for field in list(edits.schema)[2:])])


def write_peoples_edits(
    out: str, edits: PeoplesEdits, rows: Mapping[tuple[str, str], Rows], shards: Mapping[str, Sequence[Shard]]
) -> tuple[Version | None, dict[str, tuple[Shard, ...]]]:
    """Writes the edit files of a compacted copy. Returns (what its manifest says of them, its shards by split).

    rows: {(split, path of a shard): the rows of `edits.whole` that it holds}. None, and the same shards, if people have
    edited nothing.
    """
    tables = ([DELETIONS_SCHEMA.empty_table()], [CORRECTIONS_SCHEMA.empty_table()])
    done = {}
    for split, each_of in shards.items():
        done[split] = tuple(_edited(split, shard, rows[split, shard.path], edits, tables) for shard in each_of)
    if not sum(part.num_rows for parts in tables for part in parts):
        return None, done
    names = pa.array([shard.path for each_of in shards.values() for shard in each_of], pa.string())
    deletions, corrections = (pa.concat_tables(parts) for parts in tables)
    left_out = write_edits(out, DELETIONS_NAME, deletions, names)
    return Version("", {}, left_out, write_edits(out, CORRECTIONS_NAME, corrections, names)), done


def _edited(
    split: str, shard: Shard, rows: Rows, edits: PeoplesEdits, tables: tuple[list[pa.Table], list[pa.Table]]
) -> Shard:
    """Returns a shard of the copy with its number of deleted rows; adds its edits to `tables`."""
    of_row = np.argsort(rows)
    for parts, mine, schema in zip(
        tables, (edits.removed[split], edits.corrected[split]), (DELETIONS_SCHEMA, CORRECTIONS_SCHEMA), strict=True
    ):
        here = mine.filter(pc.is_in(mine["row"], value_set=pa.array(rows, pa.int64())))
        if here.num_rows:
            places = of_row[np.searchsorted(rows, here["row"].to_numpy(), sorter=of_row)]
            here = here.set_column(0, "row", pa.array(places, pa.int32()))
            here = here.add_column(0, "shard", pa.array([shard.path] * here.num_rows, pa.string()).dictionary_encode())
            parts.append(here.select(schema.names).cast(schema))
            if schema is DELETIONS_SCHEMA:
                shard = replace(shard, deleted=rows_per_group(shard, places))
    return shard
