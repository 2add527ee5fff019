"""Raw images -> Parquet shards + manifest, by Ray Data: one task a shard, each of them done once.

A target is written by one process at a time (`pipeline/storage/lease.py`). Every finished shard leaves a receipt below
`_ingest/`; an ingest that starts again trusts a shard only if its receipt is of the same plan and its bytes have the
receipt's SHA-256, and writes the others. `manifest.json` comes last and once; then `_ingest/` is removed.
"""

import hashlib
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import ClusterError, DatasetError
from pipeline.core.progress import Progress, silent
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES, Buffer, Refused, Stored, examine, examine_planes
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, Split, is_dataset, parse_shard
from pipeline.dataset.parquet import ImageMemory, Row, parquet_bytes, provenance_table, read_tables, write_shard
from pipeline.ingestion import duplicates
from pipeline.ingestion.plan import Settings, ShardPlan, plan_id, plan_shards
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.sources import Index, open_source
from pipeline.storage import files as storage
from pipeline.storage import lease, object_store
from pipeline.storage.claim import claim_folder
from pipeline.storage.object_store import Requests

CARD_NAME, QUARANTINE_NAME, QUALITY_NAME = "README.md", "quarantine.parquet", "quality.html"
WORK = "_ingest"
# Most memory that a task takes besides its shard: reads in flight, one decoded image, and Python with its libraries.
TASK_OVERHEAD_BYTES = 400 << 20

QUARANTINE_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("sha256", pa.string()),  # of the file as it is in the source
        ("bytes", pa.int64()),
        ("object", pa.string()),
        ("offset", pa.int64()),
    ]
)


def task_memory_bytes(settings: Settings) -> int:
    """Returns what one task may take: its shard once as rows, and once more on its way to a store."""
    return 2 * settings.shard_bytes + TASK_OVERHEAD_BYTES


# --- one shard ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Receipt:
    """What a task says of its shard. shard: a manifest's Shard. requests: what it sent. peak_bytes: most memory of
    its process, ever. trusted: it was there already."""

    plan: str
    path: str
    shard: dict[str, Any]
    rows_per_class: list[int]
    quarantined: list[dict[str, Any]]
    repaired: dict[str, int]
    histogram: list[int]
    num_pixels: int
    requests: dict[str, int]
    peak_bytes: int
    trusted: bool = False


def make_shard(samples: pa.Table, plan: ShardPlan, context: "ShardContext") -> Receipt:
    """Reads, checks and writes the rows of one shard and its provenance."""
    before = object_store.sent()
    rows: list[Row | None] = [None] * samples.num_rows
    keys, labels, lengths = (samples[name].to_pylist() for name in ("key", "label", "length"))
    memory = ImageMemory([min(length, MAX_IMAGE_BYTES) for length in lengths])
    quarantined, repaired = [], Counter[str]()
    histogram, num_pixels = np.zeros(768, dtype=np.int64), 0

    def take(position: int, data: Buffer) -> None:
        nonlocal num_pixels
        image = context.examine(data, keys[position])
        if isinstance(image, Refused):
            refuse(position, image.reason, image.source_sha256)
            return
        place = None
        if image.data is data:
            place = memory.keep(position, data)
            image = replace(image, data=memory.view[place : place + len(data)])
        rows[position] = Row(keys[position], labels[position], image, place)
        if image.repair:
            repaired[_kind_of(image.repair)] += 1
        if image.facts is not None:
            histogram[:] += image.facts.histogram
            num_pixels += image.height * image.width

    def refuse(position: int, reason: str, sha256: str) -> None:
        entry = {"key": keys[position], "label": labels[position], "reason": reason, "sha256": sha256}
        quarantined.append({**entry, "bytes": lengths[position]})

    for position, length in enumerate(lengths):
        if length == 0:
            take(position, b"")
        elif length > MAX_IMAGE_BYTES:
            refuse(position, f"too large: {length:,} bytes, the limit is {MAX_IMAGE_BYTES:,}", "")
    for position, data in gather(samples):
        take(position, data)

    kept = [row for row in rows if row is not None]
    counts = np.bincount([row.label for row in kept], minlength=len(context.classes)).tolist()
    place = storage.join(context.out, plan.path)
    written, offsets = write_shard(place, kept, context.classes, plan.row_group_rows, memory)
    provenance = parquet_bytes(provenance_table(kept, offsets))
    storage.write_bytes(storage.join(context.out, plan.provenance_path), provenance)
    shard = {
        "path": plan.path,
        "rows": len(kept),
        **asdict(written),
        "provenance_path": plan.provenance_path,
        "provenance_sha256": hashlib.sha256(provenance).hexdigest(),
    }
    quarantined.sort(key=lambda entry: str(entry["key"]))
    requests = asdict(object_store.sent().plus(before, -1))
    return Receipt(
        context.plan,
        plan.path,
        shard,
        counts,
        quarantined,
        dict(repaired),
        histogram.tolist(),
        num_pixels,
        requests,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    )


def _kind_of(repair: str) -> str:
    # "shrunk to 500x375, ..." has as many forms as there are sizes; they are counted as one.
    return "; ".join("shrunk" if part.startswith("shrunk to") else part for part in repair.split("; "))


@dataclass(frozen=True)
class ShardContext:
    """What all tasks of an ingest share."""

    plan: str
    out: str
    encoding: str
    classes: tuple[str, ...]
    settings: Settings

    def examine(self, data: Buffer, key: str) -> Stored | Refused:
        """Returns what becomes of one sample."""
        if self.encoding == "cifar":
            return examine_planes(bytes(data), self.settings.handling)
        return examine(data, key, self.settings.handling)

    def receipt_uri(self, path: str) -> str:
        """Where the receipt of a shard lies."""
        return storage.join(self.out, WORK, "receipts", f"{path}.json")

    def trusted_receipt(self, plan: ShardPlan) -> Receipt | None:
        """Returns the receipt of an earlier ingest, if its shard is there and is what it says."""
        try:
            receipt = Receipt(**storage.read_json(self.receipt_uri(plan.path)))
            if receipt.plan != self.plan or receipt.path != plan.path:
                return None
            for path, expected in (
                (plan.path, receipt.shard["sha256"]),
                (plan.provenance_path, receipt.shard["provenance_sha256"]),
            ):
                if hashlib.sha256(storage.read_bytes(storage.join(self.out, path))).hexdigest() != expected:
                    return None
        except FileNotFoundError:
            return None
        return Receipt(**{**asdict(receipt), "trusted": True, "requests": asdict(Requests())})


@dataclass(frozen=True)
class ShardTask:
    """Makes one planned shard, unless it is there; runs in a Ray task."""

    context: ShardContext
    tables: Any  # an ObjectRef of {split: index table}
    plans: Any  # an ObjectRef of list[ShardPlan]
    with_receipt: frozenset[str]

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}, the plan's number. Returns one row: id, and the receipt as JSON."""
        import ray

        number = int(batch["id"][0])
        plan: ShardPlan = ray.get(self.plans)[number]
        receipt = self.context.trusted_receipt(plan) if plan.path in self.with_receipt else None
        if receipt is None:
            samples = ray.get(self.tables)[plan.split].take(pa.array(plan.rows))
            receipt = make_shard(samples, plan, self.context)
            storage.write_json(self.context.receipt_uri(plan.path), asdict(receipt))
        return {"id": np.array([number]), "receipt": np.array([json.dumps(asdict(receipt))])}


# --- all shards --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IngestPlan:
    """What is to be written where: the index of the source, and its shards below the target URI."""

    source: str
    index: Index
    shards: list[ShardPlan]
    out: str
    settings: Settings
    lease: lease.Lease


@dataclass(frozen=True)
class Ingested:
    """A finished ingest: the manifest, requests sent by the tasks, shards that were there already, and the most memory
    (resident) that a task's process has had."""

    manifest: Manifest
    requests: Requests
    trusted_shards: int
    peak_task_bytes: int


@contextmanager
def planned(
    source: str,
    out: str,
    settings: Settings | None = None,
    *,
    layout: str = "auto",
    md5: str | None = None,
    progress: Progress = silent,
) -> Iterator[IngestPlan]:
    """Looks at the raw images at `source` and yields what is to be written to `out` (absolute URIs).

    Needs no Ray, but uses it for sources of many archives. While the block runs no other process can write to `out`.
    What had to be unpacked lies in a spool folder below `out`, which is removed on leaving. Raises SourceError
    for bad input and DatasetError if `out` holds a data set or other files, or another ingest is at work there.
    """
    settings = settings or Settings()
    check_target(out)
    if f"{out}/".startswith(f"{source}/"):
        raise DatasetError(f"{out}: lies inside the source {source}, and would be ingested too; give another --out")
    if storage.kind(source) == "missing" and layout != "digits":
        open_source(source, spool=out, layout=layout)  # raises, before anything is written
    had = False
    try:
        with lease.held(storage.join(out, WORK, "lease.json"), out, progress) as held:
            check_target(out)
            had = True
            spool = storage.join(out, WORK, "spool")
            try:
                index = open_source(source, spool=spool, layout=layout, md5=md5, progress=progress)
                yield IngestPlan(source, index, plan_shards(index, settings), out, settings, held)
            finally:
                storage.delete_tree(spool)
    finally:
        if had:
            _leave(out)


def _leave(out: str) -> None:
    """Removes what is of no use any more: everything of ours in a finished data set, or where nothing was begun."""
    if is_dataset(out) or not storage.exists(storage.join(out, WORK, "plan.json")):
        storage.delete_tree(storage.join(out, WORK))
    if storage.is_local(out) and os.path.isdir(out) and not os.listdir(out):
        os.rmdir(out)


def check_target(out: str) -> None:
    """Raises DatasetError if `out` holds anything but what an unfinished ingest left there."""
    if is_dataset(out):
        raise DatasetError(f"{out}: holds a finished data set already; give another --out, or delete it first")
    kind = storage.kind(out)
    if kind == "file":
        raise DatasetError(f"{out}: is a file; give a folder for --out")
    if kind == "missing":
        return
    names = [name for name, _ in storage.list_files(out)]
    ours = (".parquet", ".tmp", CARD_NAME, QUALITY_NAME)
    strangers = [name for name in names if not name.endswith(ours) and not name.startswith(f"{WORK}/")]
    if strangers:
        raise DatasetError(f"{out}: holds other files ({strangers[0]!r}); give an empty folder for --out")
    if names and not any(name.startswith(f"{WORK}/") for name in names):
        raise DatasetError(f"{out}: holds other files ({names[0]!r}); give an empty folder for --out")


def ingest(
    plan: IngestPlan, max_quarantined: float = 0, num_workers: int | None = None, progress: Progress = silent
) -> Ingested:
    """Writes what is planned and isn't there yet, and publishes the manifest, last. Needs a running Ray.

    max_quarantined: how many files (or, below 1, what share of them) may be left out. num_workers: tasks at a time,
    None for as many as there are CPUs. Raises DatasetError if more are left out, if the target holds an unfinished
    ingest of something else, or if another process has taken over.
    """
    context = ShardContext(
        plan_id(plan.index, plan.settings, plan.shards),
        plan.out,
        plan.index.encoding,
        plan.index.classes,
        plan.settings,
    )
    _claim(plan, context)
    receipts = write_shards(plan, context, num_workers, progress)
    plan.lease.check()
    _check_counts(plan, receipts)
    rejected = quarantine_table(plan.index, receipts)
    storage.write_bytes(storage.join(plan.out, QUARANTINE_NAME), parquet_bytes(rejected))
    _check_quarantined(plan, rejected, max_quarantined)
    manifest = publish(plan, receipts, progress)
    requests = Requests()
    for receipt in receipts:
        requests = requests.plus(Requests(**receipt.requests))
    trusted = sum(receipt.trusted for receipt in receipts)
    return Ingested(manifest, requests, trusted, max(receipt.peak_bytes for receipt in receipts))


def _claim(plan: IngestPlan, context: ShardContext) -> None:
    """Writes down what is being ingested, and clears away what can't be continued.

    Raises DatasetError if the target holds an unfinished ingest of something else.
    """
    place = storage.join(plan.out, WORK, "plan.json")
    mine = {"plan": context.plan, "source": plan.source.split("?")[0], "settings": asdict(plan.settings)}
    theirs = claim_folder(place, mine)
    differences = [name for name in ("source", "settings") if theirs[name] != mine[name]]
    if differences:
        raise DatasetError(
            f"{plan.out}: holds an unfinished ingest with another {' and other '.join(differences)} "
            f"({theirs[differences[0]]}); give another --out, or delete this folder"
        )
    names = [name for name, _ in storage.list_files(plan.out)]
    if theirs["plan"] != mine["plan"]:  # the source has changed meanwhile: its shards are other shards
        keep = tuple(f"{WORK}/{name}" for name in ("lease.json", "spool/"))
        storage.delete_files(plan.out, [name for name in names if not name.startswith(keep)])
        storage.write_bytes(place, json.dumps(mine, indent=1).encode())
    elif storage.is_local(plan.out):  # what a killed process left half written
        storage.delete_files(plan.out, [name for name in names if name.endswith(".tmp")])


def write_shards(plan: IngestPlan, context: ShardContext, num_workers: int | None, progress: Progress) -> list[Receipt]:
    """Runs one Ray task a shard; returns the receipts in the order of the plan."""
    import ray

    _check_memory(plan.settings)
    below = storage.join(plan.out, WORK, "receipts")
    there = frozenset(name.removesuffix(".json") for name, _ in storage.list_files(below))
    context_of_data = ray.data.DataContext.get_current()
    context_of_data.enable_progress_bars = False
    context_of_data.raise_original_map_exception = True  # else its cause is lost on the way
    task = ShardTask(context, ray.put(plan.index.splits), ray.put(plan.shards), there)
    # Not `range`, whose reading would be tasks of its own, and have half the CPUs reserved for them.
    numbers = [{"id": number} for number in range(len(plan.shards))]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        task, batch_size=1, num_cpus=1, memory=task_memory_bytes(plan.settings), concurrency=num_workers
    )
    receipts: dict[int, Receipt] = {}
    done = 0
    progress("write", 0, plan.index.num_rows)
    for row in dataset.iter_rows():
        receipt = Receipt(**json.loads(row["receipt"]))
        receipts[row["id"]] = receipt
        done += len(plan.shards[row["id"]].rows)
        left_out = sum(len(each.quarantined) for each in receipts.values())
        progress("write", done, plan.index.num_rows, f"{left_out:,} can't be used" if left_out else "")
        plan.lease.check()
    return [receipts[number] for number in range(len(plan.shards))]


def _check_memory(settings: Settings) -> None:
    import ray

    most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    takes = task_memory_bytes(settings)
    if most < takes:
        raise ClusterError(
            f"one shard takes {takes / 2**20:,.0f} MiB of memory, and no node offers more than "
            f"{most / 2**20:,.0f} MiB; use a smaller --shard-mib or larger nodes"
        )


def _check_counts(plan: IngestPlan, receipts: list[Receipt]) -> None:
    for shard, receipt in zip(plan.shards, receipts, strict=True):
        written, left_out = receipt.shard["rows"], len(receipt.quarantined)
        if written + left_out != len(shard.rows):
            raise DatasetError(
                f"{shard.path}: {len(shard.rows)} rows indexed, {written} written and {left_out} quarantined; "
                "run the same command again"
            )


def quarantine_table(index: Index, receipts: list[Receipt]) -> pa.Table:
    """Returns a table of QUARANTINE_SCHEMA: every file that couldn't be stored, where it lies, and why."""
    rows = []
    places: dict[str, dict[str, int]] = {}
    for receipt in receipts:
        split = receipt.path.split("/")[0]
        table = index.splits[split]
        for entry in receipt.quarantined:
            at = places.setdefault(split, {key: n for n, key in enumerate(table["key"].to_pylist())})[entry["key"]]
            place = {"object": table["object"][at].as_py().split("?")[0], "offset": table["offset"][at].as_py()}
            rows.append({"split": split, **entry, **place})
    rows.sort(key=lambda row: (row["split"], row["key"]))
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def _check_quarantined(plan: IngestPlan, rejected: pa.Table, most: float) -> None:
    bound = most if most >= 1 or most == 0 else most * plan.index.num_rows
    if rejected.num_rows <= bound:
        return
    worst = [f"{row['key']}: {row['reason']}" for row in rejected.slice(0, 3).to_pylist()]
    raise DatasetError(
        f"{rejected.num_rows:,} of {plan.index.num_rows:,} files can't be used ({'; '.join(worst)}), "
        f"max_quarantined={most:g}; repair them, or leave them out with jobs/ingest.py --max-quarantined "
        f"{rejected.num_rows} (all are listed in {storage.join(plan.out, QUARANTINE_NAME)})"
    )


# --- the end -----------------------------------------------------------------------------------------------------


def build_manifest(plan: IngestPlan, receipts: list[Receipt]) -> Manifest:
    """Returns the manifest of finished shards, without quality and digest."""
    splits: dict[str, Split] = {}
    sources: list[str] = []
    for split in plan.index.splits:
        mine = [receipt for receipt in receipts if receipt.path.split("/")[0] == split]
        shards = tuple(shard for shard in (parse_shard(receipt.shard) for receipt in mine) if shard.rows)
        counts = np.sum([receipt.rows_per_class for receipt in mine], axis=0)
        if not shards:
            raise DatasetError(f"split {split!r}: no image of it can be used; see {QUARANTINE_NAME}")
        places = [storage.join(plan.out, shard.provenance_path) for shard in shards]
        table = read_tables(places, ["key", "label", "source_sha256"])
        columns = (table[name].to_pylist() for name in table.column_names)
        sources += [f"{split} {key} {label} {sha.hex()}" for key, label, sha in zip(*columns, strict=True)]
        refused = (entry for receipt in mine for entry in receipt.quarantined)
        sources += [f"{split} {entry['key']} {entry['label']} {entry['sha256']}" for entry in refused]
        splits[split] = Split(table.num_rows, tuple(counts.tolist()), shards)
    repaired, reasons = Counter[str](), Counter[str]()
    for receipt in receipts:
        repaired.update(receipt.repaired)
        reasons.update(entry["reason"].split(":")[0] for entry in receipt.quarantined)
    return Manifest(
        plan.index.name,
        plan.index.classes,
        plan.settings.seed,
        splits,
        source_digest=hashlib.sha256("\n".join(sorted(sources)).encode()).hexdigest(),
        quarantined=dict(sorted(reasons.items())),
        repaired=dict(sorted(repaired.items())),
        settings=asdict(plan.settings),
    )


def publish(plan: IngestPlan, receipts: list[Receipt], progress: Progress) -> Manifest:
    """Looks at the data set as a whole, writes what describes it, and publishes the manifest. Raises DatasetError."""
    from pipeline.ingestion import quality_report  # its charts take a second to load, and tasks have no use for them

    manifest = build_manifest(plan, receipts)
    histogram = np.sum([receipt.histogram for receipt in receipts], axis=0)
    manifest = duplicates.assess(plan.out, manifest, histogram, progress).signed()
    page = quality_report.render(plan.out, manifest, histogram)
    plan.lease.check()
    storage.write_bytes(storage.join(plan.out, QUALITY_NAME), page.encode())
    storage.write_bytes(storage.join(plan.out, CARD_NAME), dataset_card(manifest).encode())
    if not storage.write_once(storage.join(plan.out, MANIFEST_NAME), manifest.to_json()):
        raise DatasetError(f"{plan.out}: another ingest has published a data set here meanwhile; use that one")
    return manifest


def dataset_card(manifest: Manifest) -> str:
    """Returns the data set's README.md, whose header lets `datasets.load_dataset(FOLDER)` decode the images.

    The shards' own metadata says the same, but `datasets` heeds that only for columns stored as it would store
    them (label int64, image a struct).
    """
    files = [{"split": name, "path": f"{name}/*.parquet"} for name in manifest.splits]
    names = {str(label): name for label, name in enumerate(manifest.classes)}
    features = [
        {"name": "key", "dtype": "string"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "image", "dtype": "image"},
        {"name": "height", "dtype": "int32"},
        {"name": "width", "dtype": "int32"},
    ]
    header = {"configs": [{"config_name": "default", "data_files": files}], "dataset_info": {"features": features}}
    rows = "\n".join(f"- {name}: {split.rows:,} rows" for name, split in manifest.splits.items())
    # JSON is YAML, and needs no quoting rules of its own.
    return (
        f"---\n{json.dumps(header, indent=1)}\n---\n\n# {manifest.name}\n\n{rows}\n\n"
        f"{len(manifest.classes)} classes. Digest `{manifest.digest}`, see `{MANIFEST_NAME}`.\n"
    )
