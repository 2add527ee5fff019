"""The last stage of an ingest: check that no row was lost, describe the data set as a whole, publish its manifest."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress
from pipeline.core.shares import counted
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, Split, parse_shard
from pipeline.dataset.parquet import read_split_provenance
from pipeline.ingestion.plan import IngestSettings, ShardPlan
from pipeline.ingestion.quality import statistics
from pipeline.ingestion.shard_task import Receipt
from pipeline.ingestion.sources import Index
from pipeline.ingestion.target import CARD_NAME, QUALITY_NAME, QUARANTINE_NAME
from pipeline.storage import files, lease
from pipeline.storage.file_names import printable

_log = logging.getLogger(__name__)

QUARANTINE_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("sha256", pa.string()),  # of the file as it is in the source
        ("bytes", pa.int64()),
        ("object", pa.string()),  # URI of the file, or of the archive that holds it
        ("offset", pa.int64()),
    ]
)


@dataclass(frozen=True)
class IngestPlan:
    """The plan of an ingest: the index of the source, and the shards to write to the target."""

    source: str
    index: Index
    shards: list[ShardPlan]
    out: str
    settings: IngestSettings
    lease: lease.Lease  # held on `out`


def check_counts(plan: IngestPlan, receipts: list[Receipt]) -> None:
    """Raises DatasetError unless every indexed row was written or quarantined."""
    for shard, receipt in zip(plan.shards, receipts, strict=True):
        written, refused = receipt.shard["rows"], len(receipt.quarantined)
        if written + refused != len(shard.rows):
            raise DatasetError(
                f"{shard.path}: {len(shard.rows)} rows indexed, {written} written and {refused} quarantined; "
                "run the same command again"
            )


def quarantine_table(index: Index, receipts: list[Receipt]) -> pa.Table:
    """Returns a table of QUARANTINE_SCHEMA: every refused file, sorted by split and key."""
    rows = []
    positions: dict[str, dict[str, int]] = {}
    for receipt in receipts:
        split = receipt.path.split("/")[0]
        table = index.splits[split]
        for entry in receipt.quarantined:
            at = positions.setdefault(split, {key: n for n, key in enumerate(table["key"].to_pylist())})[entry["key"]]
            place = {"object": _shown(table["object"][at].as_py()), "offset": table["offset"][at].as_py()}
            rows.append({"split": split, **entry, **place})
    for each in index.unusable:
        row = {"split": each.split, "key": each.key, "label": each.label, "reason": each.reason}
        rows.append({**row, "sha256": "", "bytes": 0, "object": _shown(each.object), "offset": 0})
    rows.sort(key=lambda row: (row["split"], row["key"]))
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def _shown(uri: str) -> str:
    """Returns the URI of a file for people: names that aren't UTF-8 escaped, without the query of a store."""
    return printable(uri if files.is_local(uri) else uri.split("?")[0])


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
    """Returns the manifest of finished shards, without quality and digest."""
    splits: dict[str, Split] = {}
    sources: list[str] = []
    for name in plan.index.splits:
        mine = [receipt for receipt in receipts if receipt.path.split("/")[0] == name]
        splits[name] = _build_split(name, mine)
        sources += _source_lines(plan.out, name, splits[name], mine)
    _check_no_class_is_lost(plan.index, splits)
    repaired, reasons = Counter[str](), Counter[str]()
    for receipt in receipts:
        repaired.update(receipt.repaired)
        reasons.update(entry["reason"].split(":")[0] for entry in receipt.quarantined)
    reasons.update(each.reason.split(":")[0] for each in plan.index.unusable)
    sources += [f"{each.split} {each.key} {each.label} " for each in plan.index.unusable]
    return Manifest(
        plan.index.name,
        plan.index.classes,
        plan.settings.seed,
        splits,
        source_digest=hashlib.sha256("\n".join(sorted(sources)).encode()).hexdigest(),
        quarantined=dict(sorted(reasons.items())),
        repaired=dict(sorted(repaired.items())),
        settings=asdict(plan.settings),
        val_share=plan.index.val_share,
    )


def _check_no_class_is_lost(index: Index, splits: dict[str, Split]) -> None:
    """Raises DatasetError if a class had training images and none of them can be used."""
    if "train" not in splits:
        return
    wanted = np.bincount(index.splits["train"]["label"].to_numpy(), minlength=len(index.classes))
    for label in np.flatnonzero((wanted > 0) & (np.array(splits["train"].rows_per_class) == 0)):
        raise DatasetError(
            f"class {index.classes[label]!r}: none of its {counted(int(wanted[label]), 'training image')} can be used; "
            f"see {QUARANTINE_NAME}, and mend or remove them"
        )


def _build_split(name: str, receipts: list[Receipt]) -> Split:
    shards = tuple(shard for shard in (parse_shard(receipt.shard) for receipt in receipts) if shard.rows)
    if not shards:
        raise DatasetError(f"split {name!r}: no image of it can be used; see {QUARANTINE_NAME}")
    counts = np.sum([receipt.rows_per_class for receipt in receipts], axis=0)
    return Split(sum(shard.rows for shard in shards), tuple(counts.tolist()), shards)


def _source_lines(out: str, name: str, split: Split, receipts: list[Receipt]) -> Iterable[str]:
    """Yields a line for each file of the source, stored or refused; `source_digest` is a hash over these lines."""
    table = read_split_provenance(out, split, ["key", "label", "source_sha256"])
    columns = (table[column].to_pylist() for column in table.column_names)
    yield from (f"{name} {key} {label} {sha.hex()}" for key, label, sha in zip(*columns, strict=True))
    refused = (entry for receipt in receipts for entry in receipt.quarantined)
    yield from (f"{name} {entry['key']} {entry['label']} {entry['sha256']}" for entry in refused)


def publish(plan: IngestPlan, receipts: list[Receipt], progress: Progress) -> Manifest:
    """Looks for duplicates, writes quality.html and README.md, then the manifest, last. Returns the manifest.

    Raises DatasetError if another process has taken the lease, or has published a data set here.
    """
    from pipeline.ingestion.quality import report  # matplotlib takes a second to load, and tasks have no use for it

    manifest = build_manifest(plan, receipts)
    histogram = np.sum([receipt.histogram for receipt in receipts], axis=0)
    manifest = statistics.with_quality(plan.out, manifest, histogram, progress).with_digest()
    page = report.render(plan.out, manifest, histogram)
    plan.lease.check()
    files.write_bytes(files.join(plan.out, QUALITY_NAME), page.encode())
    files.write_bytes(files.join(plan.out, CARD_NAME), dataset_card(manifest).encode())
    # Readers take a folder with a manifest for a finished data set, so nothing may follow it.
    if not files.write_once(files.join(plan.out, MANIFEST_NAME), manifest.to_json()):
        raise DatasetError(f"{plan.out}: another ingest has published a data set here meanwhile; use that one")
    return manifest


def dataset_card(manifest: Manifest) -> str:
    """Returns the data set's README.md, whose header lets `datasets.load_dataset(FOLDER)` decode the images.

    The shards' own metadata holds the same features, but `datasets` uses that only for columns in the form in which it
    would store them itself (label as int64, image as a struct).
    """
    data_files = [{"split": name, "path": f"{name}/*.parquet"} for name in manifest.splits]
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
    )
