"""The public functions: `ingest`, which writes a data set, and `preview_ingest`, which writes nothing."""

import logging
import os
import tempfile
from dataclasses import dataclass

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.core.errors import PipelineError, SourceError
from pipeline.core.progress import Progress, begin, silent
from pipeline.ingestion.cost import Estimate, estimate
from pipeline.ingestion.found import found_lines
from pipeline.ingestion.plan import IngestSettings, ShardPlan, plan_shards
from pipeline.ingestion.run import Ingested, planned_ingest, write_dataset
from pipeline.ingestion.shard_task import task_memory_bytes
from pipeline.ingestion.sources import Index, Source, hub, open_source
from pipeline.ingestion.sources.source import MAX_QUARANTINED
from pipeline.ingestion.target import check_target
from pipeline.storage import files
from pipeline.storage.request_counts import requests_sent

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """The plan of an ingest and its cost."""

    index: Index
    """Classes, splits and rows of the source."""

    shards: list[ShardPlan]
    """The shards that would be written."""

    cost: Estimate
    """Requests, seconds and US dollars."""

    listing_requests: int
    """Requests to object storage that listing the source has taken."""

    cpus: int
    """CPUs that `cost` assumes."""

    task_memory_bytes: int
    """Most memory that one task takes."""


def ingest(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    settings: IngestSettings | None = None,
    max_quarantined: float = MAX_QUARANTINED,
    workers: int | None = None,
    progress: Progress = silent,
) -> Ingested:
    """Turns raw images into a data set and returns it: Parquet shards and a manifest, the same bytes every time.

        data = ingest("photos/", "data/photos")
        image, label = data["train"][0]

    source: a folder of class folders, an archive (tar, zip), a folder of archives, or "digits"; a path, or a URI such
    as s3://bucket/key. `Source` names the layout where it can't be recognised. out: a new or empty folder. settings:
    what the bytes depend on besides the source. max_quarantined: unusable files that may be left out; below 1, a share
    of all. workers: shards written at a time, None for one a CPU. progress: called with stage, rows done and in all.

    Starts Ray on this machine, or joins the cluster of RAY_ADDRESS, unless Ray runs already. An interrupted ingest goes
    on where it stopped when it is called again. Raises SourceError if the source can't be used, DatasetError if `out`
    is in use or too many files are damaged, StorageError if a storage refuses or stays away.
    """
    source, target = _resolved(source), files.absolute(os.fspath(out))
    if workers is not None and workers < 1:
        raise PipelineError(f"workers={workers} must be 1 or more")
    if max_quarantined < 0:
        raise PipelineError(f"max_quarantined={max_quarantined} must not be negative")
    if source.layout != "digits" and not files.is_local(source.uri) and not hub.is_hub(source.uri):
        if not files.exists(source.uri):  # before Ray starts, and whether the storage answers at all
            raise SourceError(f"{source.uri}: no such file or directory; give an existing path or URI")
        check_target(target)
        begin(progress, "starting Ray")
        with ray_session(workers or 0), planned_ingest(source, target, settings, progress) as plan:
            _log_found(plan.index)
            return write_dataset(plan, max_quarantined, workers, progress)
    # A local source is indexed in seconds, and a bad one needn't wait for Ray to start.
    with planned_ingest(source, target, settings, progress) as plan:
        _log_found(plan.index)
        begin(progress, "starting Ray")
        with ray_session(workers or 0):
            return write_dataset(plan, max_quarantined, workers, progress)


def preview_ingest(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    settings: IngestSettings | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Preview:
    """Returns the shards that `ingest` would write, and the cost. Writes nothing. Parameters, errors: see `ingest`."""
    source, target = _resolved(source), files.absolute(os.fspath(out))
    settings = settings or IngestSettings()
    check_target(target)
    with tempfile.TemporaryDirectory() as spool:
        index = open_source(source, spool=spool, progress=progress)
        listing_requests = requests_sent().total
        shards = plan_shards(index, settings)
        _log_found(index)
        cpus = workers or usable_cpus()
        cost = estimate(index, shards, settings, target, cpus)
    return Preview(index, shards, cost, listing_requests, cpus, task_memory_bytes(settings))


def _resolved(source: str | os.PathLike[str] | Source) -> Source:
    return (source if isinstance(source, Source) else Source(os.fspath(source))).resolved()


def _log_found(index: Index) -> None:
    """Tells, before anything is written, how the source was understood."""
    for line in found_lines(index):
        _log.info("%s", line)
