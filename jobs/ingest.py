"""Turns raw images into a data set: Parquet shards and a manifest, the same bytes every time.

An interrupted ingest continues where it stopped when the same command runs again. --dry-run shows the plan and its cost
and writes nothing. --onto writes what has changed since an earlier ingest alone; --correct makes a version of a data
set that follows people's verdicts on its labels.

Examples:
    uv run jobs/ingest.py --source photos/ --out data/photos
    uv run jobs/ingest.py --source s3://bucket/raw --out s3://bucket/photos --dry-run
    uv run jobs/ingest.py --source photos/ --out data/photos-tuesday --onto data/photos-monday
    uv run jobs/ingest.py --correct verdicts.csv --onto data/photos --out data/photos-corrected
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import time
from dataclasses import dataclass, field
from typing import Annotated

from jobs.arguments.flags import given_flags
from jobs.arguments.source import RawArgs
from jobs.terminal import command
from pipeline.core.errors import PipelineError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Manifest
from pipeline.ingestion.api import ingest, preview_ingest
from pipeline.ingestion.corrections.run import correct
from pipeline.ingestion.image_check import DEFAULT_SHRUNK_QUALITY, Checks, ImageHandling
from pipeline.ingestion.plan import SHARD_BYTES, IngestSettings
from pipeline.ingestion.run import Ingested
from pipeline.ingestion.sources import Source
from pipeline.storage import files
from pipeline.storage.request_counts import requests_sent

_LEAKED = "(duplicates and near duplicates of train)"
_LEAKED_REMEDY = "; reports give the accuracy without them, quality.html shows them: remove one of each pair to mend it"
RESUME_HINT = "the same command continues where it stopped"


@dataclass(frozen=True)
class SourceArgs:
    """The raw images. Paths, or s3://bucket/key, gs://bucket/key, hf://datasets/OWNER/NAME."""

    source: Annotated[
        str | None,
        command.option("a folder, an archive (tar, zip), a table of files and labels, or the word digits", "URI"),
    ] = None


@dataclass(frozen=True)
class ContentArgs:
    """Settings that the bytes of the data set depend on."""

    seed: Annotated[int, command.option("seed of the order of rows in the shards", "N", "0")] = 0
    shard_mib: Annotated[float, command.option("MiB of images in a shard", "N", "192")] = SHARD_BYTES / 2**20
    checks: Annotated[
        Checks,
        command.option(
            "decode: decode every image; header: look at its two ends only, and don't look for duplicates",
            "NAME",
            "decode",
        ),
    ] = "decode"
    shorter_side_px: Annotated[
        int, command.option("shrink larger images to this shorter side; 0: keep their size", "N", "0")
    ] = 0
    jpeg_quality: Annotated[
        int,
        command.option(
            f"encode all images again with this quality; 0: only those that are shrunk, with {DEFAULT_SHRUNK_QUALITY}",
            "N",
            "0",
        ),
    ] = 0

    def settings(self, is_version: bool) -> IngestSettings | None:
        """Returns the settings; None for those of the parent of a version. Raises PipelineError for a bad value."""
        if is_version and self == ContentArgs():
            return None
        if not 0 < self.shard_mib <= 1024:
            raise PipelineError(f"shard_mib={self.shard_mib:g} must lie above 0 and be at most 1024")
        handling = ImageHandling(self.checks, self.shorter_side_px, self.jpeg_quality)
        return IngestSettings(self.seed, int(self.shard_mib * 2**20), handling)


@dataclass(frozen=True)
class VersionArgs:
    """A version of an earlier data set of this source: it holds what is new, and refers to the earlier one's shards."""

    onto: Annotated[str | None, command.option("the earlier data set; content settings are its own", "URI")] = None
    recheck: Annotated[
        bool, command.option("read every file to find changes, instead of trusting lengths, times and ETags", "")
    ] = False
    correct: Annotated[
        str | None,
        command.option("verdicts on labels, from label-problems.html of an evaluation; instead of --source", "CSV"),
    ] = None


@dataclass(frozen=True)
class Args:
    """Ingests, or with --dry-run looks without writing."""

    data: Annotated[SourceArgs, command.group("data")] = SourceArgs()
    raw: Annotated[RawArgs, command.group("data")] = field(default_factory=RawArgs)
    content: Annotated[ContentArgs, command.group("content")] = ContentArgs()
    version: Annotated[VersionArgs, command.group("version")] = VersionArgs()
    out: Annotated[str | None, command.option("the data set's folder, new or empty", "URI")] = None
    workers: Annotated[int | None, command.option("shards written at a time", "N", "one per CPU")] = None
    dry_run: Annotated[bool, command.option("show the plan and its cost; write nothing", "")] = False


def main(args: Args) -> None:
    """Ingests, corrects or previews, and prints the result."""
    if args.version.correct is not None:
        _correct(args, args.version.correct)
        return
    source, settings = args.raw.source(args.data.source), args.content.settings(args.version.onto is not None)
    if source is None or args.out is None:
        missing = "--source" if source is None else "--out"
        raise PipelineError(f"{missing} is missing; give --source URI --out URI")
    if args.dry_run:
        print_preview(source, args.out, settings, args)
        return
    start = time.perf_counter()
    with command.Display() as display:
        done = ingest(
            source,
            args.out,
            settings=settings,
            max_quarantined=args.raw.max_quarantined,
            workers=args.workers,
            onto=args.version.onto,
            recheck=args.version.recheck,
            progress=display,
        )
    print_ingested(done, time.perf_counter() - start)


def _correct(args: Args, verdicts: str) -> None:
    """Makes a corrected version and prints what it is. Raises PipelineError for flags that mean nothing here."""
    if args.version.onto is None or args.out is None:
        missing = "--onto" if args.version.onto is None else "--out"
        raise PipelineError(f"{missing} is missing; give --correct CSV --onto URI --out URI")
    others = [each for each in given_flags(args, Args()) if each not in ("--correct", "--onto", "--out")]
    if others:
        raise PipelineError(f"{others[0]} means nothing with --correct, which needs no source; leave it out")
    start = time.perf_counter()
    with command.Display() as display:
        done = correct(verdicts, args.version.onto, args.out, progress=display)
    said, data = done.verdicts, done.manifest
    command.print_table(
        f"\n{files.basename(done.uri)}: {data.name}, corrected",
        [
            ("relabelled", counted(said.relabelled, "row")),
            ("removed", counted(said.removed, "row")),
            ("kept", f"{counted(said.kept, 'row')} whose label is right"),
            *([("as before", f"{counted(said.as_before, 'verdict')} followed already")] if said.as_before else []),
            *((name, counted(split.rows, "row")) for name, split in data.splits.items()),
            ("time", f"{time.perf_counter() - start:.1f} s"),
            ("digest", data.digest),
            ("manifest", files.join(done.uri, "manifest.json")),
            ("quality", files.join(done.uri, "quality.html")),
        ],
    )


def print_ingested(done: Ingested, seconds: float) -> None:
    """Prints a summary of the data set and of the ingest."""
    data = done.manifest
    num_quarantined = sum(data.quarantined.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.quarantined.items())
    leaked = ", ".join(f"{len(keys):,} of {name}" for name, keys in data.leaked.items())
    requests = done.requests.plus(requests_sent())
    repaired = "; ".join(f"{count:,} {what}" for what, count in data.repaired.items())
    command.print_table(
        f"\n{data.name}",
        [
            *((name, f"{counted(split.rows, 'row')}{_rule(name, data)}") for name, split in data.splits.items()),
            ("classes", f"{len(data.classes):,}"),
            ("shards", _shards(done)),
            ("left out", f"{num_quarantined:,} ({reasons}), see quarantine.parquet" if num_quarantined else "none"),
            ("changed", repaired or "none"),
            (
                "leaked",
                f"{leaked} {_LEAKED}{_LEAKED_REMEDY if any(data.leaked.values()) else ''}"
                if leaked
                else "not looked for",
            ),
            ("requests", str(requests) if requests.total else "none"),
            ("time", f"{seconds:.1f} s" + (_rate(data.rows / seconds) if done.changes is None else "")),
            ("digest", data.digest),
            ("manifest", files.join(done.uri, "manifest.json")),
            ("quality", files.join(done.uri, "quality.html")),
        ],
    )


def _shards(done: Ingested) -> str:
    shards = [shard for split in done.manifest.splits.values() for shard in split.shards]
    own = [shard for shard in shards if not shard.base]
    if done.trusted_shards:
        text = f"{len(own):,}, {done.trusted_shards:,} of them there already"
    else:
        text = f"{len(own):,}, {sum(shard.bytes for shard in own) / 1e6:,.1f} MB"
    if done.manifest.version is None:
        return text
    theirs = f"{len(shards) - len(own):,} in {counted(len(done.manifest.version.bases), 'earlier data set')}"
    return f"{text}, and {theirs}" if own else f"no new ones; {theirs}"


def _rate(images_per_second: float) -> str:
    return f", {images_per_second:,.0f} images/s with start-up"


def _rule(split: str, data: Manifest) -> str:
    return f" ({data.val_rule})" if split == "val" and data.val_rule else ""


def print_preview(source: Source, out: str, settings: IngestSettings | None, args: Args) -> None:
    """Prints what an ingest would write and take."""
    with command.Display() as display:
        preview = preview_ingest(
            source,
            out,
            settings=settings,
            workers=args.workers,
            onto=args.version.onto,
            recheck=args.version.recheck,
            progress=display,
        )
    index, cost = preview.index, preview.cost
    by_split = ", ".join(f"{table.num_rows:,} {name}" for name, table in index.splits.items())
    group_rows = sorted({shard.row_group_rows for shard in preview.shards})
    command.print_table(
        f"\n{index.name}: the plan (nothing was written)",
        [
            ("layout", index.layout),
            ("rows", f"{cost.rows:,} ({by_split}), {len(index.classes):,} classes"),
            ("bytes", f"{cost.source_bytes / 1e6:,.1f} MB"),
            ("shards", f"{cost.shards:,}, of row groups of {' or '.join(map(str, group_rows))} rows"),
            (
                "requests",
                f"{cost.reads:,} GET, {cost.writes:,} PUT (and {preview.listing_requests:,} to look at the source)",
            ),
            ("memory", f"at most {preview.task_memory_bytes / 2**20:,.0f} MiB a worker"),
            ("time", f"about {cost.seconds:,.0f} s on {counted(preview.cpus, 'CPU')}"),
            (
                "money",
                f"${cost.money:,.2f} once, ${cost.money_per_month:,.2f} a month for storage (ingestion/cost.py)",
            ),
        ],
    )


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
