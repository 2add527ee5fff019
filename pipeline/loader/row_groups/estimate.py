"""What a run will read from object storage in each epoch: computed beforehand, by the code that decides in the run.

Threads of the ranks make the batches (`pipeline/loader/streaming/threads.py`); opening the data set isn't counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.dataset.row_reader import coalesce_rows
from pipeline.loader.row_groups.eviction import Keeper
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import Order

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
