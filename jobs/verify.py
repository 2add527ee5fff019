"""Checks a data set against its manifest: every byte of every shard, rows, classes. Exits with 2 if it is damaged.

Examples:
    uv run jobs/verify.py --data data/photos
    uv run jobs/verify.py --data s3://bucket/photos
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import time
from dataclasses import dataclass
from typing import Annotated

from jobs.terminal import command
from pipeline.core.errors import DatasetError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import load
from pipeline.ingestion.verify import verify_dataset
from pipeline.storage import files


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    data: Annotated[str, command.option("a data set that ingest wrote", "URI")]


def main(args: Args) -> None:
    """Prints each damaged file, or a summary of the data set. Raises DatasetError if anything is damaged."""
    uri = files.absolute(args.data)
    start = time.perf_counter()
    with command.Display() as display:
        damages = verify_dataset(uri, display)
    for damage in damages:
        command.console.print(f"damaged: {damage.path}: {damage.what}")
    if damages:
        raise DatasetError(
            f"{uri}: {counted(len(damages), 'file or split is', 'files or splits are')} damaged; restore them from "
            "a copy, or ingest again"
        )
    data = load(uri)
    shards = [shard for split in data.splits.values() for shard in split.shards]
    num_bytes, seconds = sum(shard.bytes for shard in shards), time.perf_counter() - start
    command.print_table(
        f"\n{data.name} is whole",
        [
            *((name, counted(split.rows, "row")) for name, split in data.splits.items()),
            ("shards", f"{len(shards):,}, {num_bytes / 1e6:,.1f} MB"),
            ("time", f"{seconds:.1f} s, {num_bytes / 1e6 / seconds:,.0f} MB/s"),
            ("digest", data.digest),
        ],
    )


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
