"""The last stage of an ingest: check that no row was lost, describe the data set as a whole, publish its manifest."""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress
from pipeline.core.shares import counted
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    VERSION_SCHEMA_VERSION,
    Manifest,
    load_stored,
)
from pipeline.dataset.records import Rows
from pipeline.dataset.version import Changes, check_not_rewritten, folder_of_versions
from pipeline.ingestion.changes.histogram import histogram_without
from pipeline.ingestion.changes.onto import Onto
from pipeline.ingestion.changes.parts import version_parts, whole_parts
from pipeline.ingestion.changes.state import PixelState, read_pixels, state_of, write_pixels, write_state
from pipeline.ingestion.plan import IngestSettings, ShardPlan, plan_shards
from pipeline.ingestion.quality import statistics
from pipeline.ingestion.quality.duplicates import Searched, near_duplicates
from pipeline.ingestion.shard_task import Receipt
from pipeline.ingestion.sources import Index
from pipeline.ingestion.target import CARD_NAME, QUALITY_NAME, QUARANTINE_NAME
from pipeline.storage import files, lease

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestPlan:
    """The plan of an ingest: the index of the source, and the shards to write to the target."""

    source: str
    index: Index
    out: str
    settings: IngestSettings
    lease: lease.Lease  # held on `out`
    onto: Onto | None = None  # the data set that a version is made of

    @cached_property
    def to_write(self) -> Index:
        """The rows that the shards hold: those of the index, or of a version the new ones."""
        return self.index if self.onto is None else self.onto.new_rows(self.index)

    @cached_property
    def shards(self) -> list[ShardPlan]:
        """The shards to write."""
        return plan_shards(self.to_write, self.settings)


def check_counts(plan: IngestPlan, receipts: list[Receipt]) -> None:
    """Raises DatasetError unless every indexed row was written or quarantined."""
    for shard, receipt in zip(plan.shards, receipts, strict=True):
        written, refused = receipt.shard["rows"], len(receipt.quarantined)
        if written + refused != len(shard.rows):
            raise DatasetError(
                f"{shard.path}: {len(shard.rows)} rows indexed, {written} written and {refused} quarantined; "
                "run the same command again"
            )


def check_quarantined(plan: IngestPlan, quarantined: pa.Table, most: float) -> None:
    """Names refused files in a warning. Raises DatasetError if there are more than `most`; below 1, a share of all."""
    if not quarantined.num_rows:
        return
    first = [f"{row['key']}: {row['reason']}" for row in quarantined.slice(0, 3).to_pylist()]
    files_of = counted(plan.index.num_labelled, "file")
    problem = f"{quarantined.num_rows:,} of {files_of} can't be used ({'; '.join(first)})"
    place = files.join(plan.out, QUARANTINE_NAME)
    if quarantined.num_rows <= (most if most >= 1 else most * plan.index.num_labelled):
        _log.warning("warning: %s; they are left out, and listed in %s", problem, place)
        return
    raise DatasetError(
        f"{problem}, max_quarantined={most:g}; repair them, or leave them out with --max-quarantined "
        f"{quarantined.num_rows} (all are listed in {place})"
    )


def build_manifest(plan: IngestPlan, receipts: list[Receipt]) -> Manifest:
    """Returns the manifest of finished shards as it will be in the file, without quality and digest.

    Writes the edit files of a version.
    """
    parts = (
        whole_parts(plan.index, plan.out, receipts)
        if plan.onto is None
        else version_parts(plan.onto, plan.index, plan.out, receipts)
    )
    repaired, reasons = parts.repaired, Counter[str]()
    for receipt in receipts:
        repaired.update(receipt.repaired)
        reasons.update(entry["reason"].split(":")[0] for entry in receipt.quarantined)
    reasons.update(each.reason.split(":")[0] for each in plan.index.unusable)
    return Manifest(
        plan.index.name,
        plan.index.classes,
        plan.settings.seed,
        parts.splits,
        source_digest=parts.source_digest,
        quarantined=dict(sorted(reasons.items())),
        repaired=dict(sorted(repaired.items())),
        settings=asdict(plan.settings),
        val_share=plan.index.val_share,
        version=parts.version,
        schema_version=SCHEMA_VERSION if parts.version is None else VERSION_SCHEMA_VERSION,
    )


def _refused_keys(receipts: list[Receipt]) -> dict[str, pa.Array]:
    """Returns the keys of the files that couldn't be stored, for each split."""
    keys: dict[str, list[str]] = {}
    for receipt in receipts:
        keys.setdefault(receipt.split, []).extend(entry["key"] for entry in receipt.quarantined)
    return {split: pa.array(found, pa.string()) for split, found in keys.items()}


@dataclass(frozen=True)
class ParentPixels:
    """The data set that a version is made of, and its rows that the version leaves out."""

    uri: str
    stored: Manifest  # as it is in the file
    gone: Mapping[str, Rows]  # {split: rows}

    @staticmethod
    def of(uri: str, stored: Manifest, changes: Mapping[str, Changes]) -> "ParentPixels":
        """Returns a data set without the rows that a version's changes delete."""
        return ParentPixels(uri, stored, {name: each.deleted["row"].to_numpy() for name, each in changes.items()})


def publish(plan: IngestPlan, receipts: list[Receipt], progress: Progress) -> Manifest:
    """Describes the data set as a whole and publishes its manifest (`publish_manifest`), which is returned."""
    manifest = build_manifest(plan, receipts)
    histogram = sum((np.array(each.histogram) for each in receipts), np.zeros(768, dtype=np.int64))
    parent = None
    if plan.onto is not None:
        parent = ParentPixels.of(plan.onto.uri, plan.onto.stored, plan.onto.changes)
    state = state_of(plan.index, _refused_keys(receipts))
    manifest, histogram = with_quality(plan.out, manifest, histogram, parent, progress)
    return publish_manifest(plan.out, manifest, histogram, state, plan.lease, parent)


def publish_manifest(
    out: str,
    manifest: Manifest,
    histogram: npt.NDArray[np.int64],
    state: pa.Table,
    held: lease.Lease,
    parent: ParentPixels | None,
) -> Manifest:
    """Writes state, quality.html and README.md, then the manifest, last. Returns the manifest, with its digest.

    histogram: int64 [768], counts of the values of all rows. state: of `changes.state.STATE_SCHEMA`. Raises
    DatasetError if another process has taken the lease, or has published a data set here, or has changed the parent.
    """
    from pipeline.ingestion.quality import report  # matplotlib takes a second to load, and tasks have no use for it

    manifest = manifest.with_digest()
    page = report.render(out, manifest.resolved, histogram)
    held.check()
    write_state(out, state)
    files.write_bytes(files.join(out, QUALITY_NAME), page.encode())
    files.write_bytes(files.join(out, CARD_NAME), dataset_card(manifest).encode())
    if parent:
        check_not_rewritten(folder_of_versions(parent.uri))
        if load_stored(parent.uri).digest != parent.stored.digest:
            raise DatasetError(f"{parent.uri}: has been changed meanwhile; run the same command again")
    # Readers take a folder with a manifest for a finished data set, so nothing may follow it.
    if not files.write_once(files.join(out, MANIFEST_NAME), manifest.to_json()):
        raise DatasetError(f"{out}: another ingest has published a data set here meanwhile; use that one")
    return manifest.resolved


def with_quality(
    out: str,
    manifest: Manifest,
    histogram: npt.NDArray[np.int64],
    parent: ParentPixels | None,
    progress: Progress,
) -> tuple[Manifest, npt.NDArray[np.int64]]:
    """Returns the manifest with `quality` and `leaked`, and the histogram of all rows; writes the state of the pixels.

    Both are as they came if the images weren't decoded. histogram: of the rows in the data set's own shards.
    """
    if manifest.settings["handling"]["checks"] != "decode":
        return manifest, histogram
    resolved, earlier = manifest.resolved, None
    rows = statistics.pixel_rows(out, resolved)
    if parent is not None:
        before = read_pixels(parent.uri)
        whole = None if before is None else before.histogram
        histogram = histogram + histogram_without(parent.uri, parent.stored.resolved, whole, parent.gone)
        if before is not None:
            earlier = Searched(statistics.kept_pixels(resolved, rows), before.near)
    near = near_duplicates(out, resolved, rows, earlier, progress)
    write_pixels(out, PixelState(near, histogram))
    return statistics.with_quality(manifest, rows, near, histogram), histogram


_NOT_ALONE = "a-version-is-read-by-pipeline.open_dataset-and-to_arrow"
_OF_OTHERS = "A version: most of its rows lie in other folders, and some of these are left out or relabelled."
_EDITED = "Some of the rows in its shards are left out or relabelled, as people have said."
_VERSION_NOTE = (
    '\n{} `pipeline.open_dataset(FOLDER)["train"].to_arrow()` gives all of them to pandas, DuckDB and `datasets`.\n'
)


def dataset_card(manifest: Manifest) -> str:
    """Returns the data set's README.md, whose header lets `datasets.load_dataset(FOLDER)` decode the images.

    The shards' own metadata holds the same features, but `datasets` uses that only for columns in the form in which it
    would store them itself (label as int64, image as a struct). Of a version `load_dataset` would find new rows alone,
    so it is sent to a path that isn't there, which it names.
    """
    is_version = manifest.version is not None
    data_files = [
        {"split": name, "path": _NOT_ALONE if is_version else f"{name}/*.parquet"} for name in manifest.splits
    ]
    names = {str(label): name for label, name in enumerate(manifest.classes)}
    features = [
        {"name": "key", "dtype": "string"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "image", "dtype": "image"},
        {"name": "height", "dtype": "int32"},
        {"name": "width", "dtype": "int32"},
    ]
    header = {"configs": [{"config_name": "default", "data_files": data_files}], "dataset_info": {"features": features}}
    rows = "\n".join(f"- {name}: {counted(split.rows, 'row')}" for name, split in manifest.splits.items())
    # JSON is YAML, and needs no quoting rules of its own.
    return (
        f"---\n{json.dumps(header, indent=1)}\n---\n\n# {manifest.name}\n\n{rows}\n\n"
        f"{len(manifest.classes)} classes. Digest `{manifest.digest}`, see `{MANIFEST_NAME}`.\n"
        + (_VERSION_NOTE.format(_OF_OTHERS if manifest.version.bases else _EDITED) if manifest.version else "")
    )
