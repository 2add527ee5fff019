"""The plan of an ingest: which rows go into which shard. A pure function of the index, a seed and the sizes.

The rows of a split, sorted by a keyed random number of each key, are cut into row groups of equal size, and these into
shards of nearly equal size. So no all-to-all shuffle is needed, and the same source and seed give the same shards on
any number of machines.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.core.errors import DatasetError, PipelineError
from pipeline.core.keyed_random import Stream, key_hash, permutation
from pipeline.core.partition import even_split
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import Rows
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.sources import Index
from pipeline.storage.ranges import coalesce

SHARD_BYTES = 192 << 20
SHARD_ROWS = 8192  # at most, so that small images make several shards, too, and several tasks
ROW_GROUP_BYTES = 8 << 20
ROW_GROUP_ROWS = (16, 512)  # least and most
# Neighbouring files of a source are read together; the size of a read bounds the memory of a task.
READ_BYTES = 4 << 20
GAP_BYTES = 64 << 10
_DIGEST_ROWS = 1 << 20  # hashed at a time


@dataclass(frozen=True)
class IngestSettings:
    """Settings that the bytes of a data set depend on, besides its source."""

    seed: int = 0
    """Seed of the order of rows in the shards."""

    shard_bytes: int = SHARD_BYTES
    """Bytes of images in a shard, about. A task holds its shard in memory up to twice."""

    handling: ImageHandling = field(default_factory=ImageHandling)
    """How images are checked and stored."""


def settings_of(manifest: Manifest) -> IngestSettings:
    """Returns the settings that a data set was ingested with. Raises DatasetError if this release knows others."""
    values = manifest.settings
    handling = values.get("handling", {})
    try:
        if values.keys() != {each.name for each in fields(IngestSettings)}:
            raise TypeError(f"{', '.join(values) or 'none'}")
        return msgspec.convert({**values, "handling": ImageHandling(**handling)}, IngestSettings)
    except (TypeError, msgspec.ValidationError, PipelineError) as error:
        raise DatasetError(
            f"{manifest.name} {manifest.digest[:12]}: its settings are of another release ({error}); use that release, "
            "or ingest the source anew"
        ) from error


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written by one task."""

    split: str
    path: str  # below the data set
    rows: Rows  # indices in the split's index table, in the order of the shard
    row_group_rows: int

    @property
    def provenance_path(self) -> str:
        """Path, below the data set, of the table of sources and facts of the rows."""
        return f"provenance/{self.path}"


def plan_shards(index: Index, settings: IngestSettings) -> list[ShardPlan]:
    """Returns the shards of all splits; each row of the index is in one of them, once."""
    plans = []
    for split, table in index.splits.items():
        order = permutation(settings.seed, 0, Stream.SHARD, key_hash(table["key"]))
        num_bytes = int(table["length"].to_numpy().sum())
        group_rows = row_group_rows(num_bytes / table.num_rows, settings.shard_bytes)
        num_groups = -(-table.num_rows // group_rows)
        wanted = max(-(-num_bytes // settings.shard_bytes), -(-table.num_rows // SHARD_ROWS), 1)
        num_shards = min(wanted, num_groups)
        for number in range(num_shards):
            start, stop = even_split(num_groups, num_shards, number)
            path = f"{split}/{number:05d}-of-{num_shards:05d}.parquet"
            plans.append(ShardPlan(split, path, order[start * group_rows : stop * group_rows], group_rows))
    return plans


def row_group_rows(mean_bytes: float, shard_bytes: int = SHARD_BYTES) -> int:
    """Returns the rows of a row group: a power of two that makes it near ROW_GROUP_BYTES.

    mean_bytes: of an image. A row group is what the cache of a node fetches: large enough to be worth a request.
    """
    fitting = int(2 ** np.floor(np.log2(max(1.0, min(ROW_GROUP_BYTES, shard_bytes) / max(1.0, mean_bytes)))))
    return min(max(fitting, ROW_GROUP_ROWS[0]), ROW_GROUP_ROWS[1])


@dataclass(frozen=True)
class Read:
    """One read of the source: `length` bytes at `offset` of an object, which hold one or more rows."""

    object: str
    offset: int
    length: int
    rows: tuple[int, ...]  # positions in the table that was planned, sorted by offset


def plan_reads(samples: pa.Table) -> Iterator[Read]:
    """Yields the reads for the rows of an index table, without those that are empty or too large to be stored."""
    objects = samples["object"].combine_chunks()
    names, codes = objects.dictionary, objects.indices.to_numpy()
    offsets, lengths = samples["offset"].to_numpy(), samples["length"].to_numpy()
    wanted = np.flatnonzero((lengths > 0) & (lengths <= MAX_IMAGE_BYTES))
    for found in coalesce(codes[wanted], offsets[wanted], lengths[wanted], GAP_BYTES, READ_BYTES):
        rows = tuple(wanted[list(found.items)].tolist())
        yield Read(names[found.object].as_py(), found.offset, found.length, rows)


def plan_id(
    index: Index, settings: IngestSettings, shards: list[ShardPlan], removed: frozenset[bytes] = frozenset()
) -> str:
    """Returns a hash of everything that the shards depend on; an unfinished ingest is continued only if it is equal.

    removed: SHA-256 of files of the source that no shard may hold.
    """
    digest = hashlib.sha256(json.dumps([asdict(settings), index.encoding, index.classes]).encode())
    for split, table in index.splits.items():
        digest.update(f"{split} {index.fingerprint}".encode())
        for start in range(0, table.num_rows, _DIGEST_ROWS):
            part = table.select(["key", "label", "length"]).slice(start, _DIGEST_ROWS).combine_chunks()
            digest.update(part.to_batches()[0].serialize())
    for shard in shards:
        digest.update(f"{shard.path} {len(shard.rows)} {shard.row_group_rows}".encode())
    digest.update(b"".join(sorted(removed)))
    return digest.hexdigest()
