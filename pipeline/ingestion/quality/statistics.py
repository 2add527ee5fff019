"""Statistics of a data set as a whole: pixel values, and images that occur twice, within a split and across splits."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_provenance
from pipeline.ingestion.quality.pairs import Pair, pairs_of

MOST_PAIRS = 200  # that a manifest lists; the counts are of all


def pixel_rows(uri: str, manifest: Manifest) -> pa.Table:
    """Returns split, row, key and the facts of all rows that a search for duplicates needs.

    Raises DatasetError if the provenance lacks facts of pixels.
    """
    rows = read_provenance(uri, manifest, ["key", "pixel_sha256", "perceptual_hash", "thumbnail"])
    if rows["pixel_sha256"].null_count:
        raise DatasetError(f"{uri}: the provenance lacks pixels; delete the folder and ingest again")
    return rows


def kept_pixels(manifest: Manifest, rows: pa.Table) -> pa.Array:
    """Returns the SHA-256 of the pixels of the rows that a version keeps. rows: as from `pixel_rows`."""
    parts = []
    for name, split in manifest.splits.items():
        kept = sum(shard.live_rows for shard in split.shards if shard.base)  # these come first
        parts.append(rows.filter((pc.field("split") == name) & (pc.field("row") < kept))["pixel_sha256"])
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.binary(32)).combine_chunks()


def with_quality(manifest: Manifest, rows: pa.Table, near: pa.Table, histogram: npt.NDArray[np.int64]) -> Manifest:
    """Returns the manifest with its `quality` and `leaked`.

    quality: num_pixels; pixel_mean and pixel_std of R, G and B, 0 to 1; the counts duplicates and near_duplicates for
    each "SPLIT-SPLIT"; and pairs, the first MOST_PAIRS of them. rows: split, key and pixel_sha256 of all rows. near: a
    table of `duplicates.NEAR_SCHEMA`. histogram: int64 [768], counts of the values of all rows.
    """
    pairs = pairs_of(rows, near)
    counts: dict[str, dict[str, int]] = {"duplicates": {}, "near_duplicates": {}}
    leaked: dict[str, set[str]] = {name: set() for name in manifest.splits if name != "train"}
    for pair in pairs:
        between = "-".join(sorted((pair.first[0], pair.second[0])))
        kind = counts["duplicates" if pair.exact else "near_duplicates"]
        kind[between] = kind.get(between, 0) + 1
        for mine, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if mine[0] != "train" and other[0] == "train":
                leaked[mine[0]].add(mine[1])
    values = {**pixel_statistics(histogram), **counts, "pairs": [_as_json(pair) for pair in pairs[:MOST_PAIRS]]}
    return replace(manifest, quality=values, leaked={name: tuple(sorted(keys)) for name, keys in leaked.items()})


def _as_json(pair: Pair) -> dict[str, Any]:
    first, second = list(pair.first), list(pair.second)
    return {"first": first, "second": second, "exact": pair.exact, "correlation": round(pair.correlation, 4)}


def pixel_statistics(histogram: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Returns num_pixels, and mean and (population) standard deviation of R, G and B, 0 to 1.

    histogram: int64 [768]. Sums are exact integers and divided once.
    """
    counts = [[int(n) for n in channel] for channel in histogram.reshape(3, 256)]
    num_pixels = sum(counts[0])
    means, deviations = [], []
    for channel in counts:
        total = sum(value * n for value, n in enumerate(channel))
        squares = sum(value * value * n for value, n in enumerate(channel))
        means.append(total / num_pixels / 255)
        # N times the sum of squares minus the square of the sum: integers, so nothing is rounded before the root.
        deviations.append((num_pixels * squares - total * total) ** 0.5 / num_pixels / 255)
    return {"num_pixels": num_pixels, "pixel_mean": means, "pixel_std": deviations}
