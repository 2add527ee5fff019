"""Carries an ingest out with Ray Data: one task for each shard, each shard written once, the manifest last.

One process at a time writes to a target (`storage/lease.py`). What a finished task did is in its receipt below
`_ingest/`, so an ingest that starts again writes only the shards that are missing (`shard_task.py`).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import ClusterError, DatasetError
from pipeline.core.progress import Progress, begin, silent
from pipeline.dataset.api import Dataset
from pipeline.dataset.parquet import parquet_bytes
from pipeline.ingestion.plan import IngestSettings, plan_id, plan_shards
from pipeline.ingestion.publish import IngestPlan, check_counts, check_quarantined, publish, quarantine_table
from pipeline.ingestion.shard_task import Receipt, ShardContext, ShardTask, task_memory_bytes
from pipeline.ingestion.sources import Source, located, open_source
from pipeline.ingestion.target import QUARANTINE_NAME, WORK, check_target, clean_up, record_plan
from pipeline.storage import files, lease
from pipeline.storage.request_counts import RequestCounts


@dataclass(frozen=True)
class Ingested(Dataset):
    """A data set that was just ingested, with figures of the ingest."""

    requests: RequestCounts
    """Requests that the tasks sent to object storage."""

    trusted_shards: int
    """Shards that an earlier, interrupted ingest had written."""

    peak_task_bytes: int
    """Most memory that the process of a task has had."""


@contextmanager
def planned_ingest(
    source: Source, out: str, settings: IngestSettings | None = None, progress: Progress = silent
) -> Iterator[IngestPlan]:
    """Indexes the raw images and yields the plan of the shards to write to `out` (absolute URIs).

    Needs no Ray, but uses it, if it runs, for sources of many archives. While the block runs, no other process can
    write to `out`. Unpacked archives lie in a spool folder below `out`, which is removed at the end of the block.
    Raises SourceError if the source can't be used, and DatasetError if `out` holds a data set or other files, or if
    another ingest is writing there.
    """
    settings = settings or IngestSettings()
    check_target(out)
    folder = source.uri if source.layout == "digits" else located.folder_of(source.uri)
    if f"{out}/".startswith(f"{folder}/"):
        raise DatasetError(f"{out}: lies inside the source {folder}, and would be ingested too; give another --out")
    if source.layout != "digits" and not located.exists(source.uri):
        open_source(source, spool=out)  # raises before anything is written
    claimed = False
    try:
        with lease.hold_lease(files.join(out, WORK, "lease.json"), out, progress) as held:
            check_target(out)  # once more: another process may have finished while this one waited
            claimed = True
            spool = files.join(out, WORK, "spool")
            try:
                begin(progress, f"looking at {source.uri}")
                index = open_source(source, spool=spool, progress=progress)
                yield IngestPlan(source.uri, index, plan_shards(index, settings), out, settings, held)
            finally:
                files.delete_tree(spool)
    finally:
        if claimed:
            clean_up(out)


def write_dataset(
    plan: IngestPlan, max_quarantined: float = 0, num_workers: int | None = None, progress: Progress = silent
) -> Ingested:
    """Writes the planned shards that aren't there yet, and publishes the manifest, last. Needs a running Ray.

    max_quarantined: files that may be left out; below 1, a share of all. num_workers: tasks at a time, None for one a
    CPU. Raises DatasetError if more files are left out, if the target holds an unfinished ingest of something else, or
    if another process has taken over.
    """
    context = ShardContext(
        plan_id(plan.index, plan.settings, plan.shards),
        plan.out,
        plan.index.encoding,
        plan.index.classes,
        plan.settings,
    )
    record_plan(
        plan.out,
        {"plan": context.plan, "source": plan.source.split("?")[0], "settings": asdict(plan.settings)},
    )
    receipts = _write_shards(plan, context, num_workers, progress)
    plan.lease.check()
    check_counts(plan, receipts)
    quarantined = quarantine_table(plan.index, receipts)
    files.write_bytes(files.join(plan.out, QUARANTINE_NAME), parquet_bytes(quarantined))
    check_quarantined(plan, quarantined, max_quarantined)
    manifest = publish(plan, receipts, progress)
    requests = RequestCounts()
    for receipt in receipts:
        requests = requests.plus(RequestCounts(**receipt.requests))
    trusted = sum(receipt.trusted for receipt in receipts)
    return Ingested(plan.out, manifest, requests, trusted, max(receipt.peak_bytes for receipt in receipts))


def _write_shards(
    plan: IngestPlan, context: ShardContext, num_workers: int | None, progress: Progress
) -> list[Receipt]:
    """Runs one Ray task for each shard. Returns the receipts in the order of the plan."""
    _check_memory(plan.settings)
    receipts: dict[int, Receipt] = {}
    done = quarantined = 0
    progress("write", 0, plan.index.num_rows)
    for row in _shard_tasks(plan, context, num_workers).iter_rows():
        receipt = Receipt(**json.loads(row["receipt"]))
        receipts[row["id"]] = receipt
        done += len(plan.shards[row["id"]].rows)
        quarantined += len(receipt.quarantined)
        progress("write", done, plan.index.num_rows, f"{quarantined:,} can't be used" if quarantined else "")
        plan.lease.check()
    return [receipts[number] for number in range(len(plan.shards))]


def _shard_tasks(plan: IngestPlan, context: ShardContext, num_workers: int | None) -> Any:
    """Returns a Ray Dataset with a row for each shard: id, and the receipt as JSON."""
    import ray

    receipts = files.join(plan.out, WORK, "receipts")
    with_receipt = frozenset(name.removesuffix(".json") for name, _ in files.list_files(receipts))
    task = ShardTask(context, ray.put(plan.index.splits), ray.put(plan.shards), with_receipt)
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
