"""The rows of a split whose label a person has looked at: their edits have a reason that begins with `corrected:`."""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.edits import CORRECTIONS_SCHEMA, DELETIONS_SCHEMA, live_rows, read_edits
from pipeline.dataset.manifest import Split
from pipeline.dataset.records import EditFile, Rows
from pipeline.dataset.version import by_people


def reviewed_rows(uri: str, split: Split) -> Rows:
    """Returns int64 [N]: the rows of a split whose label a person has corrected or kept, ascending.

    split: of a resolved manifest, a mixture's, too.
    """
    found = [np.empty(0, np.int64)]
    first = 0
    for shard in split.shards:
        if shard.edits is not None and shard.edits.corrections is not None:
            table = _of_shard(uri, shard.edits.corrections, CORRECTIONS_SCHEMA, shard.edits.shard)
            if table.num_rows:
                found.append(first + np.searchsorted(live_rows(uri, shard), np.sort(table["row"].to_numpy())))
        first += shard.live_rows
    return np.concatenate(found)


def removed_keys(uri: str, split: Split) -> pa.Array:
    """Returns string [N]: the keys of rows of a split that a person has removed. split: as for `reviewed_rows`."""
    found = [pa.array([], pa.string())]
    for shard in split.shards:
        if shard.edits is not None and shard.edits.deletions is not None:
            keys = _of_shard(uri, shard.edits.deletions, DELETIONS_SCHEMA, shard.edits.shard)["key"]
            found += keys.cast(pa.string()).chunks
    return pa.concat_arrays(found)


def _of_shard(uri: str, file: EditFile, schema: pa.Schema, shard: str) -> pa.Table:
    table = _of_people(uri, file, schema)
    return table.filter(pc.equal(table["shard"], shard))


@lru_cache(maxsize=8)  # one file holds the edits of all shards
def _of_people(uri: str, file: EditFile, schema: pa.Schema) -> pa.Table:
    return by_people(read_edits(uri, file, schema))
