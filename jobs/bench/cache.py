"""What windows and caches cost in requests and in shuffling, for a data set of ImageNet's size: a simulation.

uv run jobs/bench/cache.py [--rows 1281167] [--window 8 32 128 512 all] [--cache-size 0 500MB 15GB 75GB all] [--nodes 8]

Images have random sizes (lognormal). The figures are those of `jobs/datasets/plan.py`, which takes a real data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from jobs.datasets.plan import NOTE, Case, table_of
from jobs.terminal import command
from pipeline.dataset.cache_folder import parse_size
from pipeline.dataset.row_reader import RowIndex
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import Order


@dataclass(frozen=True)
class Args:
    """Flags. The defaults are ImageNet's training images in row groups of 64."""

    rows: Annotated[int, command.option("images", "N", "1,281,167")] = 1_281_167
    image_kb: Annotated[float, command.option("mean size of an image", "KB", "110")] = 110.0
    row_group_rows: Annotated[int, command.option("images in a row group", "N", "64")] = 64
    batch_size: Annotated[int, command.option("images in a global batch", "N", "1024")] = 1024
    window: Annotated[tuple[str, ...], command.option("row groups shuffled together", "N ...", "8 32 128 512 all")] = (
        "8",
        "32",
        "128",
        "512",
        "all",
    )
    cache_size: Annotated[tuple[str, ...], command.option("of each node", "SIZE ...", "0 500MB 15GB 75GB all")] = (
        "0",
        "500MB",
        "15GB",
        "75GB",
        "all",
    )
    nodes: Annotated[int, command.option("nodes that train", "N", "1")] = 1
    epochs: Annotated[float, command.option("epochs of a run", "N", "90")] = 90.0


def main(args: Args) -> None:
    """Prints the table."""
    title = f"\n{args.rows:,} images of {args.image_kb:g} KB, batches of {args.batch_size}, nodes: {args.nodes}"
    command.console.print(table_of(title, _cases(args), args.nodes, args.epochs))
    command.console.print(NOTE)


def _cases(args: Args) -> Iterator[Case]:
    index = synthetic_index(args)
    sizes = np.diff(index.row_group_ends, prepend=0).tolist()
    for window in args.window:
        order = Order(tuple(sizes), 0, args.batch_size, None if window == "all" else int(window))
        reads = NodeReads(order, index, args.nodes, (0,))
        for size in args.cache_size:
            yield Case(window, reads, None if size == "all" else parse_size(size))


def synthetic_index(args: Args) -> RowIndex:
    """Returns the index of images with random sizes, one after the other in one object."""
    spread = 0.6  # of the logarithm: a guess, not measured
    draws = np.random.default_rng(0).lognormal(-(spread**2) / 2, spread, args.rows)
    length = np.maximum(1, 1000 * args.image_kb * draws).astype(np.int32)
    ends = np.minimum(np.arange(args.row_group_rows, args.rows + args.row_group_rows, args.row_group_rows), args.rows)
    none = np.zeros(args.rows, dtype=np.int32)
    offset = np.cumsum(length, dtype=np.int64) - length
    crc32, keys = none.astype(np.uint32), none.astype(np.uint64)
    return RowIndex(("s3://bucket/shard",), none, offset, length, crc32, none, none, none, keys, ends)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
