"""What an ingest will write where, before it starts: a pure function of the index, a seed and the sizes.

The rows of a split, sorted by the draws of their keys, are cut into row groups of equal size, and those into shards
of nearly equal size. So there is no all-to-all shuffle, and the same source and seed give the same shards on any
number of machines.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.keyed_random import Stream, key_hash, permutation
from pipeline.core.partition import cut
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES, Handling
from pipeline.ingestion.sources import Index
from pipeline.storage import files

SHARD_BYTES = 192 << 20
SHARD_ROWS = 8192
ROW_GROUP_BYTES = 8 << 20
ROW_GROUP_ROWS = (16, 512)
# Ranges of a source that nearly touch are read together, but no more than this at a time: it bounds a task's memory.
READ_BYTES = 4 << 20
GAP_BYTES = 64 << 10

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """What the bytes of a data set depend on, besides its source."""

    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    handling: Handling = field(default_factory=Handling)


@dataclass(frozen=True)
class ShardPlan:
    """What one task writes: rows `rows` of the split's index table, in this order, to `path` below the target."""

    split: str
    path: str
    rows: Rows
    row_group_rows: int

    @property
    def provenance_path(self) -> str:
        """Where the table lies that says where each row came from."""
        return f"provenance/{self.path}"


def plan_shards(index: Index, settings: Settings) -> list[ShardPlan]:
    """Returns the shards of every split; each row of the index is in one of them, once."""
    plans = []
    for split, table in index.splits.items():
        order = permutation(settings.seed, 0, Stream.SHARD, key_hash(table["key"].to_pylist()))
        num_bytes = int(table["length"].to_numpy().sum())
        group_rows = row_group_rows(num_bytes / table.num_rows, settings.shard_bytes)
        num_groups = -(-table.num_rows // group_rows)
        wanted = max(-(-num_bytes // settings.shard_bytes), -(-table.num_rows // SHARD_ROWS), 1)
        num_shards = min(wanted, num_groups)
        for number in range(num_shards):
            start, stop = cut(num_groups, num_shards, number)
            path = f"{split}/{number:05d}-of-{num_shards:05d}.parquet"
            plans.append(ShardPlan(split, path, order[start * group_rows : stop * group_rows], group_rows))
    return plans


def row_group_rows(mean_bytes: float, shard_bytes: int = SHARD_BYTES) -> int:
    """Returns a power of two near ROW_GROUP_BYTES: the unit of random access, large enough for one GET to pay."""
    fitting = int(2 ** np.floor(np.log2(max(1.0, min(ROW_GROUP_BYTES, shard_bytes) / max(1.0, mean_bytes)))))
    return min(max(fitting, ROW_GROUP_ROWS[0]), ROW_GROUP_ROWS[1])


@dataclass(frozen=True)
class Read:
    """One request to the source: `length` bytes at `offset` of an object, which hold these rows of a shard."""

    object: str
    offset: int
    length: int
    rows: tuple[int, ...]


def plan_reads(samples: pa.Table) -> Iterator[Read]:
    """Yields what is to be read for the rows of an index table; rows too large to be stored, or empty, are left out.

    rows of a Read: positions in `samples`.
    """
    objects = samples["object"].combine_chunks()
    names, codes = objects.dictionary, objects.indices.to_numpy()
    offsets, lengths = samples["offset"].to_numpy(), samples["length"].to_numpy()
    wanted = np.flatnonzero((lengths > 0) & (lengths <= MAX_IMAGE_BYTES))
    order = wanted[np.lexsort((offsets[wanted], codes[wanted]))]
    run: list[int] = []
    for row in order.tolist():
        if run:
            last, first = run[-1], run[0]
            near = codes[row] == codes[first] and offsets[row] - (offsets[last] + lengths[last]) <= GAP_BYTES
            if not near or offsets[row] + lengths[row] - offsets[first] > READ_BYTES:
                yield _read(names, codes, offsets, lengths, run)
                run = []
        run.append(row)
    if run:
        yield _read(names, codes, offsets, lengths, run)


def _read(names: pa.Array, codes: Any, offsets: Any, lengths: Any, run: list[int]) -> Read:
    start = int(offsets[run[0]])
    stop = max(int(offsets[row] + lengths[row]) for row in run)
    return Read(names[int(codes[run[0]])].as_py(), start, stop - start, tuple(run))


def plan_id(index: Index, settings: Settings, shards: list[ShardPlan]) -> str:
    """Returns a hash of all that the shards depend on: an unfinished ingest is continued under the same alone."""
    digest = hashlib.sha256(json.dumps([asdict(settings), index.encoding, index.classes]).encode())
    for split, table in index.splits.items():
        digest.update(f"{split} {index.fingerprint}".encode())
        for name in ("key", "label", "length"):
            for buffer in table[name].combine_chunks().buffers():
                if buffer is not None:
                    digest.update(buffer)
    for shard in shards:
        digest.update(f"{shard.path} {len(shard.rows)} {shard.row_group_rows}".encode())
    return digest.hexdigest()


# --- what it will take -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prices:
    """US dollars and seconds that estimates are made with. Money: S3 Standard and EC2 on demand in us-east-1, as
    published in 2025; requests and CPUs cost, traffic within the region does not. Seconds: measured on 2 cores of an
    AMD EPYC, see the README.
    """

    per_1000_get: float = 0.0004
    per_1000_put_or_list: float = 0.005
    per_cpu_hour: float = 0.048
    per_gb_month: float = 0.023
    seconds_per_image: float = 0.0002
    seconds_per_megabyte: float = 0.004
    decode_seconds_per_megabyte: float = 0.026
    seconds_per_pair: float = 1e-8  # of images compared, in the search for near duplicates
    start_seconds: float = 8.0


@dataclass(frozen=True)
class Estimate:
    """What an ingest will take: reads and writes as requests where source and target are S3, else 0."""

    rows: int
    shards: int
    source_bytes: int
    reads: int
    writes: int
    money: float
    money_per_month: float
    seconds: float


OTHER_WRITES = 6  # plan, lease, README.md, quarantine.parquet, quality.html, manifest.json


def estimate(
    index: Index, shards: list[ShardPlan], settings: Settings, out: str, num_workers: int, prices: Prices | None = None
) -> Estimate:
    """Returns what writing the planned shards with `num_workers` CPUs takes. The requests are counted, not guessed."""
    prices = prices or Prices()
    reads = writes = 0
    for shard in shards:
        samples = index.splits[shard.split].take(pa.array(shard.rows))
        reads += sum(files.in_store(read.object) for read in plan_reads(samples))
    if files.in_store(out):
        writes = 3 * len(shards) + OTHER_WRITES  # of each: itself, its provenance, its receipt
    num_bytes = sum(int(table["length"].to_numpy().sum()) for table in index.splits.values())
    megabytes = num_bytes / 1e6
    per_megabyte = prices.seconds_per_megabyte
    if settings.handling.checks == "decode" or settings.handling.reencodes:
        per_megabyte += prices.decode_seconds_per_megabyte
    cpu_seconds = index.num_rows * prices.seconds_per_image + megabytes * per_megabyte
    if settings.handling.checks == "decode":
        cpu_seconds += index.num_rows**2 / 2 * prices.seconds_per_pair
    seconds = prices.start_seconds + cpu_seconds / num_workers
    money = (
        reads / 1000 * prices.per_1000_get
        + writes / 1000 * prices.per_1000_put_or_list
        + seconds * num_workers / 3600 * prices.per_cpu_hour
    )
    return Estimate(
        index.num_rows,
        len(shards),
        num_bytes,
        reads,
        writes,
        money,
        megabytes / 1000 * prices.per_gb_month if files.in_store(out) else 0.0,
        seconds,
    )
