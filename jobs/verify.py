"""Checks a data set against its manifest: every byte of every shard, rows, classes.

uv run jobs/verify.py --data URI
"""

import time
from dataclasses import dataclass
from typing import Annotated

from jobs import command
from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import load
from pipeline.ingestion.verify import verify
from pipeline.storage import files


@dataclass(frozen=True)
class Args:
    """Ends with status 2 where anything is damaged."""

    data: Annotated[str, command.option("a data set that jobs/ingest.py wrote", "URI")]


def main(args: Args) -> None:
    """Checks, and names each damaged file."""
    uri = files.absolute(args.data)
    start = time.perf_counter()
    data = load(uri)
    with command.Display() as display:
        damages = verify(uri, data, display)
    for damage in damages:
        command.console.print(f"damaged: {damage.path}: {damage.what}")
    if damages:
        raise DatasetError(f"{uri}: {len(damages)} files or splits are damaged; restore them, or ingest again")
    shards = [shard for split in data.splits.values() for shard in split.shards]
    num_bytes, seconds = sum(shard.bytes for shard in shards), time.perf_counter() - start
    command.print_table(
        f"\n{data.name} is whole",
        [
            *((name, f"{split.rows:,} rows") for name, split in data.splits.items()),
            ("shards", f"{len(shards):,}, {num_bytes / 1e6:,.1f} MB"),
            ("time", f"{seconds:.1f} s, {num_bytes / 1e6 / seconds:,.0f} MB/s"),
            ("digest", data.digest),
        ],
    )


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
