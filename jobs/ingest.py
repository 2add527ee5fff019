"""Turns raw images into a data set: Parquet shards and a manifest, the same bytes every time.

uv run jobs/ingest.py --source URI --out URI [--dry-run] [--workers N] [--max-quarantined N|SHARE]
uv run jobs/ingest.py --diff A B
"""

import tempfile
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from jobs import command
from pipeline.cluster.ray_tasks import usable_cpus
from pipeline.cluster.session import ray_session
from pipeline.core.errors import PipelineError
from pipeline.core.progress import Progress
from pipeline.dataset.image_codec import DEFAULT_SHRUNK_QUALITY, Handling
from pipeline.dataset.manifest import load
from pipeline.ingestion import diff
from pipeline.ingestion.plan import SHARD_BYTES, Prices, Settings, estimate, plan_shards
from pipeline.ingestion.run import Ingested, check_target, ingest, planned, task_memory_bytes
from pipeline.ingestion.sources import LAYOUTS, Index, open_source
from pipeline.storage import files, object_store


@dataclass(frozen=True)
class Args:
    """URIs may be paths or s3://bucket/key. The same command again continues what was interrupted."""

    source: Annotated[
        str | None, command.option("a folder, a tar (.gz, .xz), a folder of tars, or the word digits", "URI")
    ] = None
    out: Annotated[str | None, command.option("a new or empty folder", "URI")] = None
    layout: Annotated[str, command.option(f"auto, {', '.join(LAYOUTS)}", "NAME", "auto")] = "auto"
    md5: Annotated[
        str | None, command.option("expected of a CIFAR archive; any: don't check", "HEX", "the official one")
    ] = None
    seed: Annotated[int, command.option("of the order of rows in the shards", "N", "0")] = 0
    shard_mib: Annotated[float, command.option("of images in a shard", "N", "192")] = SHARD_BYTES / 2**20
    workers: Annotated[int | None, command.option("shards made at a time", "N", "one a CPU")] = None
    checks: Annotated[
        Literal["decode", "header"],
        command.option("decode every image, or look at its ends alone and skip the quality gate", "NAME", "decode"),
    ] = "decode"
    shorter_side_px: Annotated[int, command.option("shrink larger images to it; 0: don't", "N", "0")] = 0
    jpeg_quality: Annotated[
        int, command.option(f"encode all again; alone with shorter-side {DEFAULT_SHRUNK_QUALITY}", "N", "as they come")
    ] = 0
    max_quarantined: Annotated[float, command.option("files that may be left out; below 1: a share", "N", "0")] = 0.0
    dry_run: Annotated[bool, command.option("show the plan and its cost, write nothing", "")] = False
    diff: Annotated[
        tuple[str, str] | None, command.option("two data sets: rows added, removed, relabelled, changed", "A B")
    ] = None

    def settings(self) -> Settings:
        """Returns what the bytes depend on. Raises PipelineError."""
        if self.workers is not None and self.workers < 1:
            raise PipelineError(f"workers={self.workers} must be 1 or more")
        if not 0 < self.shard_mib <= 1024:
            raise PipelineError(f"shard_mib={self.shard_mib:g} must lie above 0 and be at most 1024")
        if not (self.shorter_side_px == 0 or 8 <= self.shorter_side_px <= 10_000):
            raise PipelineError(f"shorter_side_px={self.shorter_side_px} must be 0, or 8 to 10000")
        if not 0 <= self.jpeg_quality <= 100:
            raise PipelineError(f"jpeg_quality={self.jpeg_quality} must be 0 (as they come), or 1 to 100")
        if self.max_quarantined < 0:
            raise PipelineError(f"max_quarantined={self.max_quarantined} must not be negative")
        handling = Handling(self.checks, self.shorter_side_px, self.jpeg_quality)
        return Settings(self.seed, int(self.shard_mib * 2**20), handling)


def main(args: Args) -> None:
    """Ingests, or shows what it would do, or compares; and prints what came of it."""
    if args.diff is not None:
        print_diff(*map(files.absolute, args.diff))
        return
    if args.source is None or args.out is None:
        missing = "--source" if args.source is None else "--out"
        raise PipelineError(f"{missing} is missing; give --source URI --out URI, or --diff A B")
    layout = "digits" if args.source == "digits" and args.layout == "auto" else args.layout
    source = args.source if layout == "digits" else files.absolute(args.source)
    out = files.absolute(args.out)
    settings = args.settings()
    if args.dry_run:
        dry_run(source, out, settings, layout, args.md5, args.workers)
        return
    start = time.perf_counter()
    with command.Display() as display:
        done = ingest_source(source, out, layout, args.md5, settings, display, args.max_quarantined, args.workers)
    print_ingested(done, out, time.perf_counter() - start)


def ingest_source(
    source: str,
    out: str,
    layout: str,
    md5: str | None,
    settings: Settings,
    progress: Progress,
    max_quarantined: float = 0.0,
    workers: int | None = None,
) -> Ingested:
    """Ingests `source` into `out` (absolute URIs). Ray is started first where the source is remote, for listing it."""
    if layout != "digits" and not files.is_local(source):
        with (
            ray_session(workers or 0),
            planned(source, out, settings, layout=layout, md5=md5, progress=progress) as plan,
        ):
            _say_ignored(plan.index)
            return ingest(plan, max_quarantined, workers, progress)
    with planned(source, out, settings, layout=layout, md5=md5, progress=progress) as plan:
        _say_ignored(plan.index)
        with ray_session(workers or 0):
            return ingest(plan, max_quarantined, workers, progress)


def _say_ignored(index: Index) -> None:
    if index.num_ignored:
        command.console.print(f"left out: {index.num_ignored:,} files that aren't labelled images by their names")


def print_ingested(done: Ingested, out: str, seconds: float) -> None:
    """Prints the last table."""
    data = done.manifest
    shards = [shard for split in data.splits.values() for shard in split.shards]
    left_out = sum(data.quarantined.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.quarantined.items())
    leaked = ", ".join(f"{len(keys):,} of {name}" for name, keys in data.leaked.items())
    repaired = "; ".join(f"{count:,} {what}" for what, count in data.repaired.items())
    command.print_table(
        f"\n{data.name}",
        [
            *((name, f"{split.rows:,} rows") for name, split in data.splits.items()),
            ("classes", f"{len(data.classes):,}"),
            ("shards", f"{len(shards):,}, {sum(shard.bytes for shard in shards) / 1e6:,.1f} MB")
            if not done.trusted_shards
            else ("shards", f"{len(shards):,}, {done.trusted_shards:,} of them there already"),
            ("left out", f"{left_out:,} ({reasons}), see quarantine.parquet" if left_out else "none"),
            ("changed", repaired or "none"),
            ("leaked", f"{leaked} (duplicates and near duplicates of train)" if leaked else "not looked for"),
            ("requests", str(done.requests.plus(object_store.sent())) if done.requests.total else "none"),
            ("time", f"{seconds:.1f} s, {data.rows / seconds:,.0f} images/s with start-up"),
            ("digest", data.digest),
            ("manifest", files.join(out, "manifest.json")),
            ("quality", files.join(out, "quality.html")),
        ],
    )


def dry_run(source: str, out: str, settings: Settings, layout: str, md5: str | None, workers: int | None) -> None:
    """Prints what an ingest would do and take."""
    check_target(out)
    with tempfile.TemporaryDirectory() as spool, command.Display() as display:
        index = open_source(source, spool=spool, layout=layout, md5=md5, progress=display)
        shards = plan_shards(index, settings)
        _say_ignored(index)
        cpus = workers or usable_cpus()
        indexed = object_store.sent()
        cost = estimate(index, shards, settings, out, cpus, Prices())
        by_split = ", ".join(f"{table.num_rows:,} {name}" for name, table in index.splits.items())
        rows_of_groups = sorted({shard.row_group_rows for shard in shards})
    command.print_table(
        f"\n{index.name}: the plan (nothing was written)",
        [
            ("layout", index.layout),
            ("rows", f"{cost.rows:,} ({by_split}), {len(index.classes):,} classes"),
            ("bytes", f"{cost.source_bytes / 1e6:,.1f} MB"),
            ("shards", f"{cost.shards:,}, of row groups of {' or '.join(map(str, rows_of_groups))} rows"),
            ("requests", f"{cost.reads:,} GET, {cost.writes:,} PUT (and {indexed.total:,} to look at the source)"),
            ("memory", f"at most {task_memory_bytes(settings) / 2**20:,.0f} MiB a worker"),
            ("time", f"about {cost.seconds:,.0f} s on {cpus} CPUs"),
            (
                "money",
                f"${cost.money:,.2f} once, ${cost.money_per_month:,.2f} a month for storage (ingestion/plan.py)",
            ),
        ],
    )


def print_diff(old: str, new: str) -> None:
    """Prints what differs between two data sets."""
    changes = diff.compare(old, new)
    before, after = load(old), load(new)
    command.print_table(
        f"\n{before.name} {before.digest[:12]} -> {after.name} {after.digest[:12]}",
        [
            *((what.replace("_", " "), f"{len(keys):,} rows{_some(keys)}") for what, keys in changes.by_kind().items()),
            ("classes", ", ".join(changes.classes) or "the same"),
        ],
    )


def _some(keys: tuple[str, ...]) -> str:
    return f", first {keys[0]}" if keys else ""


RESUME_HINT = "the same command continues where it stopped"

if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
