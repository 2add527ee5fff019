"""The public functions: `ingest`, which writes a data set, and `preview_ingest`, which writes nothing."""

import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.core.errors import PipelineError, SourceError
from pipeline.core.progress import Progress, begin, silent
from pipeline.ingestion.changes.onto import Parent, compare_with, why_compact
from pipeline.ingestion.cost import Estimate, estimate
from pipeline.ingestion.found import found_lines
from pipeline.ingestion.plan import IngestSettings, ShardPlan, plan_shards
from pipeline.ingestion.publish import IngestPlan
from pipeline.ingestion.run import Ingested, is_small, planned_ingest, write_dataset
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
    onto: str | os.PathLike[str] | None = None,
    recheck: bool = False,
    progress: Progress = silent,
) -> Ingested:
    """Turns raw images into a data set and returns it: Parquet shards and a manifest, the same bytes every time.

        data = ingest("photos/", "data/photos")
        image, label = data["train"][0]

    source: a folder of class folders, an archive (tar, zip), a folder of archives, or "digits"; a path, or a URI such
    as s3://bucket/key. `Source` names the layout where it can't be recognised. out: a new or empty folder. settings:
    what the bytes depend on besides the source. max_quarantined: unusable files that may be left out; below 1, a share
    of all. workers: shards written at a time, None for one a CPU. onto: an earlier data set of this source, which may
    have changed since: the new one is a version of it, which holds what is new and refers to the earlier one's shards
    for the rest. What has changed is found by lengths and times of change (in stores by ETags), and with recheck by
    reading every file. progress: called with stage, rows done and in all.

    Starts Ray on this machine, or joins the cluster of RAY_ADDRESS, unless Ray runs already. An interrupted ingest goes
    on where it stopped when it is called again. Raises SourceError if the source can't be used, DatasetError if `out`
    is in use, too many files are damaged or `onto` has other settings, StorageError if a storage refuses or stays away.
    """
    source, target, parent = _resolved(source), files.absolute(os.fspath(out)), _parent(onto, recheck)
    if workers is not None and workers < 1:
        raise PipelineError(f"workers={workers} must be 1 or more")
    if max_quarantined < 0:
        raise PipelineError(f"max_quarantined={max_quarantined} must not be negative")
    if source.layout != "digits" and not files.is_local(source.uri) and not hub.is_hub(source.uri):
        if not files.exists(source.uri):  # before Ray starts, and whether the storage answers at all
            raise SourceError(f"{source.uri}: no such file or directory; give an existing path or URI")
        check_target(target)
        if parent is None:
            begin(progress, "starting Ray")
            with ray_session(workers or 0), planned_ingest(source, target, settings, progress) as plan:
                _log_found(plan)
                return write_dataset(plan, max_quarantined, workers, progress)
    # A local source is indexed in seconds, and a bad one needn't wait for Ray to start. Nor does a version, which may
    # need no Ray.
    with planned_ingest(source, target, settings, progress, parent) as plan, ExitStack() as stack:
        _log_found(plan)
        if not is_small(plan):
            begin(progress, "starting Ray")
            stack.enter_context(ray_session(workers or 0))
        done = write_dataset(plan, max_quarantined, workers, progress)
    if reason := why_compact(done.manifest):
        _log.info("%s: `image-pipeline versions compact` makes a data set of its own, which is read faster", reason)
    return done


def preview_ingest(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    settings: IngestSettings | None = None,
    workers: int | None = None,
    onto: str | os.PathLike[str] | None = None,
    recheck: bool = False,
    progress: Progress = silent,
) -> Preview:
    """Returns the shards that `ingest` would write, and the cost. Writes nothing. Parameters, errors: see `ingest`."""
    source, target = _resolved(source), files.absolute(os.fspath(out))
    parent = _parent(onto, recheck)
    if parent is not None:
        settings = parent.checked_settings(target, settings)
    settings = settings or IngestSettings()
    check_target(target)
    with tempfile.TemporaryDirectory() as spool:
        index = open_source(source, spool=spool, progress=progress)
        _log_lines(found_lines(index))
        if parent is not None:
            compared = compare_with(parent, index, progress)
            _log_lines(compared.lines())
            index = compared.new_rows(index)
        listing_requests = requests_sent().total
        shards = plan_shards(index, settings)
        cpus = workers or usable_cpus()
        cost = estimate(index, shards, settings, target, cpus)
    return Preview(index, shards, cost, listing_requests, cpus, task_memory_bytes(settings))


def _resolved(source: str | os.PathLike[str] | Source) -> Source:
    return (source if isinstance(source, Source) else Source(os.fspath(source))).resolved()


def _parent(onto: str | os.PathLike[str] | None, recheck: bool) -> Parent | None:
    if onto is None:
        if recheck:
            raise PipelineError("recheck reads the files of a source again, for a version; give it with onto")
        return None
    return Parent(files.absolute(os.fspath(onto)), recheck)


def _log_found(plan: IngestPlan) -> None:
    """Tells, before anything is written, how the source was understood, and what has changed in it."""
    _log_lines([*found_lines(plan.index), *(plan.onto.lines() if plan.onto else ())])


def _log_lines(lines: list[str]) -> None:
    for line in lines:
        _log.info("%s", line)
