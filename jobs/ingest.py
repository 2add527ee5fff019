"""Turns raw images into a data set: Parquet shards and a manifest, the same bytes every time.

uv run jobs/ingest.py --source URI --out URI [--layout auto] [--seed 0]
"""

import time
from dataclasses import dataclass
from typing import Annotated

from jobs import command
from pipeline import storage
from pipeline.ingest import ingest, planned
from pipeline.manifest import Manifest
from pipeline.progress import Progress
from pipeline.sources import LAYOUTS


@dataclass(frozen=True)
class Args:
    """Both URIs may be paths or s3://bucket/key."""

    source: Annotated[str, command.option("a folder, a tar (.gz, .xz), a CIFAR-10 archive, or the word digits", "URI")]
    out: Annotated[str, command.option("a new or empty folder", "URI")]
    layout: Annotated[str, command.option(f"auto, {', '.join(LAYOUTS)}", "NAME", "auto")] = "auto"
    md5: Annotated[
        str | None, command.option("expected of a CIFAR archive; any: don't check", "HEX", "the official one")
    ] = None
    seed: Annotated[int, command.option("of the order of rows in the shards", "N", "0")] = 0


def main(args: Args) -> None:
    """Ingests and prints what was written."""
    layout = "digits" if args.source == "digits" and args.layout == "auto" else args.layout
    source = args.source if layout == "digits" else storage.absolute(args.source)
    out = storage.absolute(args.out)
    start = time.perf_counter()
    with command.Display() as display:
        data = ingest_source(source, out, layout, args.md5, args.seed, display)
    seconds = time.perf_counter() - start
    rows = sum(split.rows for split in data.splits.values())
    shards = [shard for split in data.splits.values() for shard in split.shards]
    command.print_table(
        f"\n{data.name}",
        [
            *((name, f"{split.rows:,} rows") for name, split in data.splits.items()),
            ("classes", f"{len(data.classes):,}"),
            ("shards", f"{len(shards):,}, {sum(shard.bytes for shard in shards) / 1e6:,.1f} MB"),
            ("time", f"{seconds:.1f} s, {rows / seconds:,.0f} images/s with start-up"),
            ("digest", data.digest),
            ("manifest", storage.join(out, "manifest.json")),
        ],
    )


def ingest_source(source: str, out: str, layout: str, md5: str | None, seed: int, progress: Progress) -> Manifest:
    """Ingests `source` into `out` (absolute URIs); Ray is started only when the source has been looked at."""
    with planned(source, out, layout=layout, md5=md5, seed=seed, progress=progress) as plan:
        if plan.index.num_ignored:
            command.console.print(f"left out: {plan.index.num_ignored:,} files that aren't images by their names")
        with command.ray_session():
            return ingest(plan, progress)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
