"""Carries an ingest out with Ray Data: one task for each shard, each shard written once, the manifest last.

One process at a time writes to a target (`storage/lease.py`). What a finished task did is in its receipt below
`_ingest/`, so an ingest that starts again writes only the shards that are missing (`shard_task.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import ClusterError, DatasetError
from pipeline.core.progress import Progress, begin, silent
from pipeline.dataset.api import Dataset
from pipeline.dataset.version import check_not_rewritten, folder_of_versions
from pipeline.ingestion.changes.find import Counts
from pipeline.ingestion.changes.onto import Parent, compare_with
from pipeline.ingestion.changes.removed import removed_sources
from pipeline.ingestion.plan import IngestSettings, plan_id
from pipeline.ingestion.publish import IngestPlan, check_counts, check_quarantined, publish
from pipeline.ingestion.quarantine import quarantine_table, write_quarantine
from pipeline.ingestion.shard_task import Receipt, ShardContext, ShardTask, finish_shard, task_memory_bytes
from pipeline.ingestion.sources import Source, located, open_source
from pipeline.ingestion.target import WORK, check_target, claim_target, record_plan
from pipeline.storage import files
from pipeline.storage.request_counts import RequestCounts

SMALL_ROWS, SMALL_BYTES = 2000, 256 << 20
"""Of new images that a version's ingest writes without Ray, which takes as long to start as one CPU to write these."""


@dataclass(frozen=True)
class Ingested(Dataset):
    """A data set that was just ingested, with figures of the ingest."""

    requests: RequestCounts
    """Requests that tasks in other processes sent to object storage; `requests_sent` has those of this process."""

    trusted_shards: int
    """Shards that an earlier, interrupted ingest had written."""

    peak_task_bytes: int
    """Most memory that the process of a task has had."""

    changes: Counts | None = None
    """What has changed since the data set that this one is a version of; None if it stands alone."""


@contextmanager
def planned_ingest(
    source: Source,
    out: str,
    settings: IngestSettings | None = None,
    progress: Progress = silent,
    parent: Parent | None = None,
) -> Iterator[IngestPlan]:
    """Indexes the raw images and yields the plan of the shards to write to `out` (absolute URIs).

    settings: None for those of the parent, or the defaults. parent: the data set to make a version of; the shards are
    those of the rows that it lacks. Needs no Ray, but uses it, if it runs, for sources of many archives. While the
    block runs, no other process can write to `out`. Unpacked archives lie in a spool folder below `out`, which is
    removed at the end of the block. Raises SourceError if the source can't be used, and DatasetError if `out` holds a
    data set or other files, if another ingest is writing there, if `parent` can have no such version, or if images are
    being removed from the versions beside it.
    """
    if parent is not None:
        settings = parent.checked_settings(out, settings)
    settings = settings or IngestSettings()
    check_target(out)
    folder = source.uri if source.layout == "digits" else located.folder_of(source.uri)
    if f"{out}/".startswith(f"{folder}/"):
        raise DatasetError(f"{out}: lies inside the source {folder}, and would be ingested too; give another --out")
    if source.layout != "digits" and not located.exists(source.uri):
        open_source(source, spool=out)  # raises before anything is written
    with claim_target(out, progress) as held:
        # From now on a removal finds this folder, and doesn't begin.
        check_not_rewritten(folder_of_versions(out))
        spool = files.join(out, WORK, "spool")
        try:
            begin(progress, f"looking at {source.uri}")
            index = open_source(source, spool=spool, progress=progress)
            onto = None if parent is None else compare_with(parent, index, progress)
            yield IngestPlan(source.uri, index, out, settings, held, onto)
        finally:
            files.delete_tree(spool)


def write_dataset(
    plan: IngestPlan, max_quarantined: float = 0, num_workers: int | None = None, progress: Progress = silent
) -> Ingested:
    """Writes the planned shards that aren't there yet, and publishes the manifest, last.

    Needs a running Ray, unless the plan is that of a small version.

    max_quarantined: files that may be left out; below 1, a share of all. num_workers: tasks at a time, None for one a
    CPU. Raises DatasetError if more files are left out, if the target holds an unfinished ingest of something else, or
    if another process has taken over.
    """
    removed = removed_sources(folder_of_versions(plan.out))
    context = ShardContext(
        plan_id(plan.to_write, plan.settings, plan.shards, removed),
        plan.out,
        plan.index.encoding,
        plan.index.classes,
        plan.settings,
        removed,
    )
    record = {"plan": context.plan, "source": plan.source.split("?")[0], "settings": asdict(plan.settings)}
    if plan.onto is not None:
        record["onto"] = plan.onto.stored.digest
    record_plan(plan.out, record)
    receipts = _write_shards(plan, context, num_workers, progress)
    plan.lease.check()
    check_counts(plan, receipts)
    quarantined = quarantine_table(plan.index, receipts)
    write_quarantine(plan.out, quarantined)
    check_quarantined(plan, quarantined, max_quarantined)
    manifest = publish(plan, receipts, progress)
    requests = RequestCounts()
    for receipt in receipts if not is_small(plan) else ():  # else they are those of this process
        requests = requests.plus(RequestCounts(**receipt.requests))
    trusted = sum(receipt.trusted for receipt in receipts)
    peak = max((receipt.peak_bytes for receipt in receipts), default=0)
    return Ingested(
        plan.out, manifest, requests, trusted, peak, None if plan.onto is None else plan.onto.found.counts()
    )


def is_small(plan: IngestPlan) -> bool:
    """Whether the shards of a version are written by this process: Ray would take longer to start."""
    tables = plan.to_write.splits.values()
    num_bytes = sum(int(table["length"].to_numpy().sum()) for table in tables)
    return plan.onto is not None and plan.to_write.num_rows <= SMALL_ROWS and num_bytes <= SMALL_BYTES


def _write_shards(
    plan: IngestPlan, context: ShardContext, num_workers: int | None, progress: Progress
) -> list[Receipt]:
    """Writes all shards, by one Ray task for each or in this process. Returns the receipts in the order of the plan."""
    receipts: dict[int, Receipt] = {}
    done = quarantined = 0
    progress("write", 0, plan.to_write.num_rows)
    for number, receipt in _made_here(plan, context) if is_small(plan) else _made_by_ray(plan, context, num_workers):
        receipts[number] = receipt
        done += len(plan.shards[number].rows)
        quarantined += len(receipt.quarantined)
        progress("write", done, plan.to_write.num_rows, f"{quarantined:,} can't be used" if quarantined else "")
        plan.lease.check()
    return [receipts[number] for number in range(len(plan.shards))]


def _made_here(plan: IngestPlan, context: ShardContext) -> Iterator[tuple[int, Receipt]]:
    """Yields (number of the shard, its receipt) of shards that are written by this process."""
    for number, shard in enumerate(plan.shards):
        receipt = context.trusted_receipt(shard)
        # In child processes, for this one is the user's: an image on which a library crashes must not end it.
        yield number, receipt or finish_shard(shard, plan.to_write.splits, context, "process")


def _made_by_ray(plan: IngestPlan, context: ShardContext, num_workers: int | None) -> Iterator[tuple[int, Receipt]]:
    """Yields (number of the shard, its receipt) as Ray's tasks end."""
    _check_memory(plan.settings)
    for row in _shard_tasks(plan, context, num_workers).iter_rows():
        yield row["id"], Receipt.parse(row["receipt"])


def _shard_tasks(plan: IngestPlan, context: ShardContext, num_workers: int | None) -> Any:
    """Returns a Ray Dataset with a row for each shard: id, and the receipt as JSON."""
    import ray

    receipts = files.join(plan.out, WORK, "receipts")
    with_receipt = frozenset(name.removesuffix(".json") for name, _ in files.list_files(receipts))
    task = ShardTask(context, ray.put(plan.to_write.splits), ray.put(plan.shards), with_receipt)
    data_context = ray.data.DataContext.get_current().copy()
    data_context.enable_progress_bars = False
    data_context.raise_original_map_exception = True  # otherwise the cause of an error is lost
    with ray.data.DataContext.current(data_context):  # a Ray Dataset keeps the context in which it was made
        # Not `ray.data.range`: its reads would be tasks of their own, and half the CPUs would be reserved for them.
        numbers = [{"id": number} for number in range(len(plan.shards))]
        return ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            task, batch_size=1, num_cpus=1, memory=task_memory_bytes(plan.settings), concurrency=num_workers
        )


def _check_memory(settings: IngestSettings) -> None:
    """Raises ClusterError if no node can run a task: Ray would wait for such a node for ever."""
    import ray

    most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    takes = task_memory_bytes(settings)
    if most < takes:
        raise ClusterError(
            f"one shard takes {takes / 2**20:,.0f} MiB of memory, and no node offers more than "
            f"{most / 2**20:,.0f} MiB; use a smaller --shard-mib or larger nodes"
        )
