"""Makes a data set that stands alone of a version, from stored bytes: no source is needed and no image is decoded.

It is byte for byte the data set that a full ingest of the version's source writes, but for labels that people have
corrected, and edit files that say which these are and which images people have removed (`compacted_edits`). Shards are
planned over the same keys and lengths and written by the same functions; what the manifest says of the rows as a whole
is that of the version.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress, silent
from pipeline.core.shares import counted
from pipeline.dataset.api import Dataset
from pipeline.dataset.edits import as_edited, live_rows
from pipeline.dataset.manifest import (
    SCHEMA_VERSION,
    VERSION_SCHEMA_VERSION,
    Manifest,
    Shard,
    Split,
    is_dataset,
    load_stored,
    parse_shard,
)
from pipeline.dataset.parquet import read_split_provenance, stored_provenance
from pipeline.dataset.records import Rows
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.dataset.schema import PROVENANCE_SCHEMA
from pipeline.dataset.version import folder_of_versions
from pipeline.ingestion.changes.histogram import histogram_without
from pipeline.ingestion.changes.onto import edits_by_people
from pipeline.ingestion.changes.state import PixelState, read_pixels, read_state, write_pixels
from pipeline.ingestion.plan import ShardPlan, plan_shards, settings_of
from pipeline.ingestion.publish import ParentPixels, publish_manifest
from pipeline.ingestion.quality import statistics
from pipeline.ingestion.quality.duplicates import near_duplicates
from pipeline.ingestion.quarantine import read_quarantine, write_quarantine
from pipeline.ingestion.shard_task import Receipt, ShardContext
from pipeline.ingestion.sources import Index
from pipeline.ingestion.sources.index import sample_table
from pipeline.ingestion.target import check_target, claim_target, record_plan
from pipeline.storage import files, lease
from pipeline.storage.request_counts import RequestCounts
from pipeline.versions.compacted_edits import PeoplesEdits, peoples_edits, write_peoples_edits
from pipeline.versions.stored_rows import write_stored

_log = logging.getLogger(__name__)
_FORM = "with edits"  # of a copy that an earlier release would write in another way
_REFUSED = -1  # in place of a row: a file in quarantine, which has a place in the plan
_SCHEMA = pa.schema([("receipt", pa.string())])


def compact(version: str | os.PathLike[str], out: str | os.PathLike[str], *, progress: Progress = silent) -> Dataset:
    """Writes the rows of a version as a data set that refers to no other, and returns it.

    version, out: paths or URIs; `out` is new or empty. An interrupted compaction goes on when it is called again.
    Raises DatasetError if the version stands alone already or is a mixture, a stored byte has changed, or `out` is in
    use.
    """
    uri, target = files.absolute(os.fspath(version)), files.absolute(os.fspath(out))
    stored = load_stored(uri)
    if stored.sources:
        raise DatasetError(f"{uri}: is a mixture, which has no shards of its own; compact the versions it is made of")
    if stored.version is None or not stored.version.parent:
        raise DatasetError(f"{uri}: refers to no other data set already; copy its folder instead")
    check_target(target)
    with claim_target(target, progress) as held:
        return Dataset(target, _Compaction(uri, stored, target, held).run(progress))


def compacted_beside(version: str | os.PathLike[str], *, progress: Progress = silent) -> str:
    """Returns the URI of a version's compacted copy, NAME-compacted in its folder; writes it unless it is there.

    Raises DatasetError as `compact` does, or if another data set has this name.
    """
    uri = files.absolute(os.fspath(version)).rstrip("/")
    target = files.join(folder_of_versions(uri), f"{files.basename(uri)}-compacted")
    if is_dataset(target):
        found, stored = load_stored(target), load_stored(uri)
        if (found.source_digest, found.rows) == (stored.source_digest, stored.rows):
            return target
    return compact(uri, target, progress=progress).uri


@dataclass(frozen=True)
class _Compaction:
    """One compaction, while the lease on its target is held."""

    uri: str
    stored: Manifest
    out: str
    held: lease.Lease

    @cached_property
    def _state(self) -> pa.Table:
        return read_state(self.uri)

    @cached_property
    def _edits(self) -> PeoplesEdits:
        return peoples_edits(self.uri, self.stored, self._state, self.out)

    @cached_property
    def _quarantine(self) -> pa.Table:
        return read_quarantine(self.uri)

    def run(self, progress: Progress) -> Manifest:
        settings = settings_of(self.stored)
        plan = f"{self.stored.digest} {_FORM}" if edits_by_people(self.uri, self.stored) else self.stored.digest
        source = f"version {self.stored.digest}"
        record_plan(self.out, {"plan": plan, "source": source, "settings": asdict(settings)})
        if self._edits.num_forgotten:
            what = counted(self._edits.num_forgotten, "image")
            _log.info("%s that people have removed can't be remembered: the class or the file is another by now", what)
        index = self._index()
        plans = plan_shards(index, settings)
        context = ShardContext(plan, self.out, "file", self.stored.classes, settings)
        task = _CompactShard(self.uri, self._edits.whole, index, context)
        done = 0

        def written(count: int) -> None:
            nonlocal done
            done = sum(len(plan.rows) for plan in plans[:count])
            progress("write", done, index.num_rows)
            self.held.check()

        tables = map_tables(task, plans, _SCHEMA, written, computes=True)
        receipts = [Receipt.parse(table["receipt"][0].as_py()) for table in tables]
        return self._publish(index, plans, receipts, progress)

    def _index(self) -> Index:
        """Returns the rows of the version as the index of a source: keys, labels, and lengths of the source's files.

        With the images that people have removed. Its column `offset` is the row in the split of `_edits.whole`, or
        _REFUSED for a file in quarantine.
        """
        lengths, refused = self._state, self._quarantine
        refused = refused.filter(pc.or_(pc.greater(refused["bytes"], 0), pc.not_equal(refused["sha256"], "")))
        splits = {}
        for name, split in self._edits.whole.splits.items():
            rows = read_split_provenance(self.uri, split, ["key", "label", "bytes"])
            known = lengths.filter(pc.equal(lengths["split"], name))
            at = pc.index_in(rows["key"], value_set=known["key"].combine_chunks())
            stored = rows["bytes"].combine_chunks().cast(pa.int64())
            lengths_of = known["length"].combine_chunks().take(at.combine_chunks())
            sizes = pc.coalesce(lengths_of, stored)
            others = refused.filter(pc.equal(refused["split"], name))
            keys = [*rows["key"].to_pylist(), *others["key"].to_pylist()]
            labels = np.concatenate([rows["label"].to_numpy(), others["label"].to_numpy()])
            places = np.concatenate([np.arange(rows.num_rows), np.full(others.num_rows, _REFUSED)])
            sizes = np.concatenate([sizes.to_numpy(), others["bytes"].to_numpy()])
            splits[name] = sample_table(keys, labels.tolist(), [""] * len(keys), places, sizes)
        return Index(self.stored.name, "version", self.stored.classes, "file", splits, self.stored.digest)

    def _publish(
        self, index: Index, plans: Sequence[ShardPlan], receipts: Sequence[Receipt], progress: Progress
    ) -> Manifest:
        written: dict[str, list[Shard]] = {name: [] for name in self.stored.splits}
        rows = {}
        for plan, receipt in zip(plans, receipts, strict=True):
            if (shard := parse_shard(receipt.shard)).rows:
                written[plan.split].append(shard)
                rows[plan.split, shard.path] = _rows_of(index, plan)
        version, shards = write_peoples_edits(self.out, self._edits, rows, written)
        splits = {}
        for name, split in self.stored.splits.items():
            splits[name] = Split(sum(shard.live_rows for shard in shards[name]), split.rows_per_class, shards[name])
            if splits[name].rows != split.rows:
                raise AssertionError(f"{name}: {splits[name].rows} rows written of {split.rows}")
        form = SCHEMA_VERSION if version is None else VERSION_SCHEMA_VERSION
        manifest = replace(self.stored, splits=splits, version=version, schema_version=form, digest="")
        write_quarantine(self.out, self._quarantine)
        histogram = np.zeros(768, dtype=np.int64)
        if manifest.settings["handling"]["checks"] == "decode":
            rows = statistics.pixel_rows(self.out, manifest.resolved)
            pixels = read_pixels(self.uri) or self._pixels(manifest, rows, progress)
            write_pixels(self.out, pixels)
            histogram = pixels.histogram
            manifest = statistics.with_quality(manifest, rows, pixels.near, histogram)
        parent = ParentPixels(self.uri, self.stored, {})
        return publish_manifest(self.out, manifest, histogram, self._state, self.held, parent)

    def _pixels(self, manifest: Manifest, rows: pa.Table, progress: Progress) -> PixelState:
        near = near_duplicates(self.out, manifest.resolved, rows, progress=progress)
        return PixelState(near, histogram_without(self.uri, self.stored.resolved, None, {}))


def _rows_of(index: Index, plan: ShardPlan) -> Rows:
    """Returns the rows of the version that a planned shard holds, in its order."""
    rows = index.splits[plan.split]["offset"].take(pa.array(plan.rows)).to_numpy()
    return rows[rows != _REFUSED]


@dataclass(frozen=True)
class _CompactShard:
    """Writes one planned shard from the rows of a version, unless an interrupted compaction has; may be a Ray task."""

    uri: str
    data: Manifest  # of the version, resolved
    index: Index
    context: ShardContext

    def __call__(self, plan: ShardPlan) -> pa.Table:
        """Returns a table of _SCHEMA: the receipt as JSON."""
        receipt = self.context.trusted_receipt(plan)
        if receipt is None:
            receipt = self._written(plan)
            files.write_json(self.context.receipt_uri(plan.path), asdict(receipt))
        return pa.table([[json.dumps(asdict(receipt))]], schema=_SCHEMA)

    def _written(self, plan: ShardPlan) -> Receipt:
        split = self.data.splits[plan.split]
        rows = _rows_of(self.index, plan)
        images = read_images(load_index(self.uri, split), rows)
        paths = (plan.path, plan.provenance_path)
        provenance = _provenance_of(self.uri, split, rows)
        shard = write_stored(self.context.out, paths, provenance, images, self.data.classes, plan.row_group_rows)
        return Receipt(
            plan=self.context.plan,
            path=plan.path,
            shard={name: value for name, value in asdict(shard).items() if name not in ("key_prefix", "edits")},
            quarantined=[],
            repaired={},
            histogram=[],
            num_pixels=0,
            requests=asdict(RequestCounts()),
            peak_bytes=0,
        )


def _provenance_of(uri: str, split: Split, rows: Rows) -> pa.Table:
    """Returns the provenance of rows of a split, in their order. Reads only the files of the shards that hold them."""
    ends = np.cumsum([shard.live_rows for shard in split.shards])
    holders = np.searchsorted(ends, rows, side="right")
    tables, positions = [PROVENANCE_SCHEMA.empty_table()], []
    for number in np.unique(holders).tolist():
        shard, mine = split.shards[number], np.flatnonzero(holders == number)
        tables.append(_rows_of_shard(uri, shard, rows[mine] - (ends[number] - shard.live_rows)))
        positions.append(mine)
    order = np.argsort(np.concatenate([np.empty(0, np.int64), *positions]), kind="stable")
    return pa.concat_tables(tables).unify_dictionaries().take(pa.array(order))


def _rows_of_shard(uri: str, shard: Shard, within: Rows) -> pa.Table:
    stored = live_rows(uri, shard)[within]
    table = stored_provenance(uri, shard).cast(PROVENANCE_SCHEMA)
    return as_edited(uri, shard, table.take(pa.array(stored)), stored)
