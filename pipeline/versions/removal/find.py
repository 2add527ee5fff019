"""Finds the stored rows of some images in all versions of a folder: those of the keys, and equal pictures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.dataset.manifest import Shard
from pipeline.dataset.parquet import stored_provenance
from pipeline.dataset.records import Rows
from pipeline.ingestion.quarantine import read_quarantine
from pipeline.versions.compare import row_name
from pipeline.versions.family import Member

_COLUMNS = ["key", "source_sha256", "pixel_sha256"]


@dataclass
class Found:
    """Rows to be removed, of all versions in a folder."""

    rows: dict[tuple[str, str], Rows] = field(default_factory=dict)
    """{(URI of the version that holds the shard, path of the shard): stored rows, ascending}."""

    names: set[tuple[str, str]] = field(default_factory=set)
    """(split, key) of each of them, and of files in quarantine."""

    sources: set[bytes] = field(default_factory=set)
    """SHA-256 of their source files."""

    pixels: set[bytes] = field(default_factory=set)
    """SHA-256 of their pixels."""


def split_of(shard: Shard) -> str:
    """Returns the split that a shard belongs to."""
    return shard.path.split("/")[0]


def find(members: Sequence[Member], keys: Collection[str]) -> Found:
    """Returns the rows with these keys (KEY or SPLIT/KEY), and all rows with the same source files or the same pixels.

    Rows that a version leaves out count, too: their bytes are in its shards.
    """
    found = Found()
    for member in members:
        _find_quarantined(member, keys, found)
    while True:  # until no picture is new
        before = len(found.sources) + len(found.pixels)
        found.rows.clear()
        for member in members:
            for shard in member.own_shards:
                _find_in_shard(member, shard, keys, found)
        if len(found.sources) + len(found.pixels) == before:
            return found


def _find_in_shard(member: Member, shard: Shard, keys: Collection[str], found: Found) -> None:
    table, split = stored_provenance(member.uri, shard, _COLUMNS), split_of(shard)
    chosen = _is_named(table, split, keys)
    for column, digests in (("source_sha256", found.sources), ("pixel_sha256", found.pixels)):
        values = pa.array(sorted(digests), table[column].type)
        chosen |= pa.compute.is_in(table[column], value_set=values, skip_nulls=True).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    some = table.take(pa.array(rows))
    found.rows[member.uri, shard.path] = rows
    found.names |= {(split, key) for key in some["key"].to_pylist()}
    found.sources |= set(some["source_sha256"].to_pylist())
    found.pixels |= {each for each in some["pixel_sha256"].to_pylist() if each is not None}


def _is_named(table: pa.Table, split: str, keys: Collection[str]) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    bare = [key.removeprefix(f"{split}/") for key in keys if key.startswith(f"{split}/")]
    values = pa.array([*keys, *bare], pa.string())
    return pa.compute.is_in(table["key"], value_set=values).to_numpy(zero_copy_only=False)


def _find_quarantined(member: Member, keys: Collection[str], found: Found) -> None:
    wanted = set(keys)
    for row in read_quarantine(member.uri).to_pylist():
        if {row["key"], row_name(row["split"], row["key"])} & wanted:
            found.names.add((row["split"], row["key"]))
            if row["sha256"]:
                found.sources.add(bytes.fromhex(row["sha256"]))
