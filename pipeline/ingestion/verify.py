"""Checks a finished data set against its manifest, byte for byte; of a version also the shards of other data sets."""

import hashlib
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress, silent
from pipeline.core.shares import counted
from pipeline.dataset.edits import CORRECTIONS_SCHEMA, DELETIONS_SCHEMA, as_edited, live_rows, read_edits
from pipeline.dataset.manifest import EditFile, Manifest, Shard, Split, load
from pipeline.dataset.parquet import read_table
from pipeline.storage import files

# One table holds both results of a check: damaged files (path, damage), and rows of the shard (path, key, label).
_SCHEMA = pa.schema([("path", pa.string()), ("damage", pa.string()), ("key", pa.string()), ("label", pa.int32())])


@dataclass(frozen=True)
class Damage:
    """A file, or a split, that isn't what the manifest says."""

    path: str
    """Path of the file below the data set, or name of the split."""

    what: str
    """How it differs from the manifest."""


@dataclass(frozen=True)
class _ShardCheck:
    """Checks one shard and its provenance; may run in a Ray task."""

    uri: str

    def __call__(self, shard: Shard) -> pa.Table:
        """Returns a table of _SCHEMA: a row for each damage, and one for each row of the shard."""
        damages: list[Damage] = []
        rows = pa.table({"key": pa.array([], pa.string()), "label": pa.array([], pa.int32())})
        data = self._read(shard.path, shard.sha256, shard.bytes, damages)
        if data is not None:
            file = pq.ParquetFile(pa.BufferReader(data))
            groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
            if groups != shard.row_group_rows:
                damages.append(Damage(shard.path, f"row groups of {groups} rows, {shard.row_group_rows} expected"))
            rows = file.read(columns=["key", "label"])
        if self._read(shard.provenance_path, shard.provenance_sha256, None, damages) is not None and data is not None:
            source = read_table(files.resolve(self.uri, shard.provenance_path), ["key", "label"])
            if not source.equals(rows.cast(source.schema)):
                damages.append(Damage(shard.provenance_path, "other rows than its shard"))
        live = live_rows(self.uri, shard) if rows.num_rows == shard.rows else np.empty(0, np.int64)
        rows = as_edited(self.uri, shard, rows.take(pa.array(live)), live)
        return pa.concat_tables([_damage_table(damages), _row_table(shard.path, rows)])

    def _read(self, path: str, sha256: str, size: int | None, damages: list[Damage]) -> bytes | None:
        """Returns the content of a file, or None, having added its damage."""
        try:
            data = files.read_bytes(files.resolve(self.uri, path))
        except FileNotFoundError:
            damages.append(Damage(path, "missing"))
            return None
        if size is not None and len(data) != size:
            damages.append(Damage(path, f"{len(data):,} bytes, {size:,} expected"))
            return None
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            damages.append(Damage(path, f"SHA-256 {found[:12]}..., {sha256[:12]}... expected"))
            return None
        return data


def _damage_table(damages: list[Damage]) -> pa.Table:
    rows = [{"path": damage.path, "damage": damage.what, "key": None, "label": None} for damage in damages]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row_table(path: str, rows: pa.Table) -> pa.Table:
    count = rows.num_rows
    columns = [pa.array([path] * count, pa.string()), pa.nulls(count, pa.string()), rows["key"], rows["label"]]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def verify_dataset(uri: str | os.PathLike[str], progress: Progress = silent) -> list[Damage]:
    """Returns the damages of the data set at a path or URI: files missing or changed, rows lost or doubled.

    Reads every byte. Uses Ray if it runs, else threads. Raises DatasetError if there is no data set.
    """
    uri = files.absolute(os.fspath(uri))
    manifest = load(uri)
    if damages := _check_edits(uri, manifest):  # without its edits, no rows of a version can be counted
        return damages
    return [damage for name in manifest.splits for damage in _verify_split(uri, manifest, name, progress)]


def _check_edits(uri: str, manifest: Manifest) -> list[Damage]:
    """Returns the damages of the edit files of a version: missing, changed, or about rows that aren't there."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards if shard.edits]
    damages = []
    for kind, schema in (("deletions", DELETIONS_SCHEMA), ("corrections", CORRECTIONS_SCHEMA)):
        rows: dict[EditFile, dict[str, int]] = {}
        for shard in shards:
            file = getattr(shard.edits, kind)
            if file is not None and shard.edits is not None:
                rows.setdefault(file, {})[shard.edits.shard] = shard.rows
        for file, rows_of in rows.items():
            try:
                table = read_edits(uri, file, schema)
            except DatasetError as error:
                damages.append(Damage(file.path, str(error).removeprefix(f"{files.resolve(uri, file.path)}: ")))
                continue
            places = list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
            if strays := [name for name, row in places if not 0 <= row < rows_of.get(name, 0)]:
                damages.append(Damage(file.path, f"{counted(len(strays), 'row')} that no shard has, first {strays[0]}"))
            if len(places) != len(set(places)):
                damages.append(Damage(file.path, "a row more than once"))
    for shard in shards if not damages else ():
        try:
            live_rows(uri, shard)
        except DatasetError as error:
            damages.append(Damage(shard.path, str(error).removeprefix(f"{shard.path}: ")))
    return damages


def _verify_split(uri: str, manifest: Manifest, name: str, progress: Progress) -> list[Damage]:
    split: Split = manifest.splits[name]
    shards = list(split.shards)
    report = partial(_report, progress, name, len(shards))
    table = pa.concat_tables(map_tables(_ShardCheck(uri), shards, _SCHEMA, report))
    bad = table.filter(pa.compute.is_valid(table["damage"]))
    if bad.num_rows:  # the counts below would only repeat it
        return [Damage(row["path"], row["damage"]) for row in bad.to_pylist()]
    damages = []
    labels = table["label"].to_numpy()
    counts = tuple(np.bincount(labels, minlength=len(manifest.classes)).tolist())
    if (len(labels), counts) != (split.rows, split.rows_per_class):
        damages.append(Damage(name, f"{len(labels):,} rows, {split.rows:,} expected, or other rows per class"))
    doubled = len(labels) - len(pa.compute.unique(table["key"]))
    if doubled:
        damages.append(Damage(name, f"{counted(doubled, 'key')} more than once"))
    return damages


def _report(progress: Progress, split: str, total: int, done: int) -> None:
    progress(f"check {split}", done, total)
