"""Checks a finished data set against its manifest, byte for byte."""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.progress import Progress, silent
from pipeline.dataset.manifest import Manifest, Shard
from pipeline.dataset.parquet import read_table
from pipeline.storage import files

_SCHEMA = pa.schema([("path", pa.string()), ("damage", pa.string()), ("key", pa.string()), ("label", pa.int32())])


@dataclass(frozen=True)
class Damage:
    """One file that isn't what the manifest says, and in what way."""

    path: str
    what: str


@dataclass(frozen=True)
class _ShardCheck:
    """Checks one shard and its provenance; may run in a Ray task. Returns the keys and labels it holds."""

    uri: str

    def __call__(self, shard: Shard) -> pa.Table:
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
            source = read_table(files.join(self.uri, shard.provenance_path), ["key", "label"])
            if not source.equals(rows.cast(source.schema)):
                damages.append(Damage(shard.provenance_path, "other rows than its shard"))
        return pa.concat_tables([_damage_table(damages), _row_table(shard.path, rows)])

    def _read(self, path: str, sha256: str, size: int | None, damages: list[Damage]) -> bytes | None:
        try:
            data = files.read_bytes(files.join(self.uri, path))
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
    nothing = pa.nulls(count, pa.string())
    columns = [pa.array([path] * count, pa.string()), nothing, rows["key"], rows["label"]]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _report(progress: Progress, split: str, total: int, done: int) -> None:
    progress(f"check {split}", done, total)


def verify(uri: str, manifest: Manifest, progress: Progress = silent) -> list[Damage]:
    """Returns what is damaged: files missing or of other bytes, rows lost or doubled, counts that don't add up.

    uri: where the manifest lies. Uses Ray where it runs.
    """
    damages: list[Damage] = []
    for name, split in manifest.splits.items():
        shards = list(split.shards)
        report = partial(_report, progress, name, len(shards))
        checked = map_tables(_ShardCheck(uri), shards, _SCHEMA, report)
        table = pa.concat_tables(checked)
        bad = table.filter(pa.compute.is_valid(table["damage"]))
        damages += [Damage(row["path"], row["damage"]) for row in bad.to_pylist()]
        if bad.num_rows:
            continue
        labels = table["label"].to_numpy()
        counts = tuple(np.bincount(labels, minlength=len(manifest.classes)).tolist())
        if (len(labels), counts) != (split.rows, split.rows_per_class):
            damages.append(Damage(name, f"{len(labels):,} rows, {split.rows:,} expected, or other rows per class"))
        doubled = len(labels) - len(pa.compute.unique(table["key"]))
        if doubled:
            damages.append(Damage(name, f"{doubled:,} keys occur more than once"))
    return damages
