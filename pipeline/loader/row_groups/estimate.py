"""What a run will read from object storage in each epoch: computed beforehand, by the code that decides in the run.

Threads of the ranks make the batches (`pipeline/loader/streaming/threads.py`); opening the data set isn't counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.dataset.cache_folder import CacheFolder, size_text
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.row_reader import coalesce_rows
from pipeline.loader.row_groups.eviction import Keeper
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import Order
from pipeline.storage import files

PART_ROWS = 32
"""Rows that a thread reads and decodes at a time: few enough that all threads work on one batch, many enough that a
call into the decoder costs little. A guess, not measured."""


@dataclass(frozen=True)
class EpochReads:
    """What one node reads in one epoch."""

    kept: int
    """Row groups that are read and were on the disk already."""
    fetched: int
    """Row groups that are fetched whole."""
    by_rows: int
    """Row groups whose rows are requested one by one, neighbours together, because the cache has no room for them."""
    requests: int
    """GET requests."""
    bytes_read: int
    """Bytes that these requests return."""
    cached_bytes: int
    """Most bytes of row groups that are on the disk, or on their way to it."""

    @property
    def hits(self) -> float:
        """Share of the row groups that were on the disk already, in [0, 1]."""
        return self.kept / max(1, self.kept + self.fetched + self.by_rows)


def check_cache_size(cache: CacheFolder | None, uri: str, data: Manifest, recipe: Recipe, world_size: int = 1) -> None:
    """Raises RecipeError if a cache is too small to read the training rows of a data set in object storage through it.

    uri, data: of the data set. The least is the shuffling windows that a rank's part of a batch may touch: two, or more
    where it is larger than a window. Of one window over everything it is a row group: each that is kept saves requests.
    """
    split, window = data.split("train"), recipe.shuffle_window_row_groups
    if cache is None or cache.max_bytes is None or recipe.residency != "stream":
        return
    if all(files.is_local(files.resolve(uri, shard.path)) for shard in split.shards):
        return
    num_groups = len(split.row_group_rows)
    sources = list(data.source_row_groups("train").values()) if data.sources else [num_groups]
    batch_groups = recipe.global_batch_size / world_size * num_groups / split.rows / len(sources)

    num_bytes = sum(shard.bytes for shard in split.shards)

    def touched_windows(window: int) -> int:
        return 1 + math.ceil(batch_groups / window)

    def least_bytes(window: int | None) -> float:
        needed = 1
        if window is not None and window < max(sources):
            needed = sum(min(touched_windows(window) * window, groups) for groups in sources)
        return needed * num_bytes / num_groups

    if cache.max_bytes >= (least := least_bytes(window)):
        return
    what, instead = "a row group", ""
    if window is not None and window < max(sources):
        what = f"{touched_windows(window)} shuffling windows of {window} row groups, which a step may touch"
        if smaller := next((each for each in range(window, 0, -1) if least_bytes(each) <= cache.max_bytes), None):
            instead = f", or shuffle_window_row_groups={smaller}"
    raise RecipeError(
        f"cache-size={cache.max_bytes / 1e6:g}MB is less than {what}, so rows would be requested one by one; "
        f"give {size_text(least)} or more, 0 for no cache{instead}"
    )


def simulate(reads: NodeReads, max_bytes: int | None) -> Iterator[EpochReads]:
    """Yields the reads of each epoch that begins before `reads.stop`. max_bytes: of the cache; 0 for none."""
    keeper, steps = Keeper(max_bytes, reads.next_use, now=reads.start), reads.order.steps_per_epoch
    by_rows = np.zeros(len(reads.index.row_group_ends), dtype=np.bool_)
    counts, num_bytes, most, epoch = {"kept": 0, "fetch": 0, "rows": 0}, 0, 0, reads.start // steps

    def finished() -> EpochReads:
        begin, end = max(reads.start, epoch * steps), min(reads.stop, (epoch + 1) * steps)
        requests, row_bytes = _row_requests(reads, range(begin, end), by_rows)
        of_each = counts["kept"], counts["fetch"], counts["rows"]
        return EpochReads(*of_each, counts["fetch"] + requests, num_bytes + row_bytes, most)

    for visit in reads.visits():
        if visit.first // steps > epoch:
            yield finished()
            counts, num_bytes, most, epoch = {"kept": 0, "fetch": 0, "rows": 0}, 0, 0, visit.first // steps
        kind = keeper.decide(visit).kind
        counts[kind] += 1
        by_rows[visit.group] = kind == "rows"
        num_bytes += visit.length if kind == "fetch" else 0
        most = max(most, keeper.used_bytes)
    if any(counts.values()):
        yield finished()


def _row_requests(reads: NodeReads, steps: range, by_rows: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Returns (requests, bytes) for the rows of the row groups that are read row by row."""
    requests = num_bytes = 0
    for step in steps if by_rows.any() else ():
        for rows in reads.parts(step):
            for start in range(0, len(rows), PART_ROWS):
                part = rows[start : start + PART_ROWS]
                found, _ = coalesce_rows(reads.index, part[by_rows[reads.index.groups_of(part)]])
                requests += len(found)
                num_bytes += sum(each.length for each in found)
    return requests, num_bytes


def meeting_again(order: Order, num_pairs: int = 2_000_000) -> float:
    """Returns the share of pairs of rows of one batch of an epoch that are in one batch of the next epoch, too.

    A measure of the shuffling, from a sample of pairs: 0.02 % for batches of 256 of a fully shuffled ImageNet.
    """
    steps = order.steps_per_epoch
    batch_of = np.full(sum(order.row_group_rows), -1)
    for step in range(steps, 2 * steps):
        batch_of[order.rows(step)] = step
    generator = np.random.default_rng(0)
    first, second = [], []
    for step in generator.choice(steps, size=min(steps, 500), replace=False).tolist():
        rows = np.unique(order.rows(step))
        if len(rows) > 1:
            pairs = generator.integers(0, len(rows), size=(2, num_pairs // min(steps, 500)))
            different = rows[pairs[:, pairs[0] != pairs[1]]]
            first.append(different[0])
            second.append(different[1])
    if not first:
        return 0.0
    ours, others = batch_of[np.concatenate(first)], batch_of[np.concatenate(second)]
    return float(((ours == others) & (ours >= 0)).mean())
