"""The list of images that occur more than once in a data set, with their names."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Pair:
    """Two rows of a data set with the same picture."""

    first: tuple[str, str]  # split, key
    second: tuple[str, str]
    correlation: float = 1.0  # of their pixels
    exact: bool = True  # whether their pixels are equal


def pairs_of(rows: pa.Table, near: pa.Table) -> list[Pair]:
    """Returns the duplicates and near duplicates among all rows: duplicates first, then the closest pairs first.

    Each row of equal pixels is paired with the first of them, and has the near duplicates of the first. rows: a table
    with split, key and pixel_sha256. near: a table of `duplicates.NEAR_SCHEMA`; pairs of other pixels don't matter.
    """
    pixels = rows["pixel_sha256"].combine_chunks()
    coded = pixels.dictionary_encode()
    kind = coded.indices.to_numpy()
    by_kind = np.argsort(kind, kind="stable")
    sizes = np.bincount(kind, minlength=len(coded.dictionary))
    ends = np.cumsum(sizes)
    starts = ends - sizes
    found: list[tuple[int, int, float, bool]] = []
    for first in np.flatnonzero(sizes > 1):
        members = by_kind[starts[first] : ends[first]].tolist()
        found += [(members[0], row, 1.0, True) for row in members[1:]]
    firsts, seconds = (pc.index_in(near[name], value_set=coded.dictionary).to_pylist() for name in ("first", "second"))
    for first, second, correlation in zip(firsts, seconds, near["correlation"].to_pylist(), strict=True):
        if first is not None and second is not None:
            for a in by_kind[starts[first] : ends[first]].tolist():
                for b in by_kind[starts[second] : ends[second]].tolist():
                    found.append((min(a, b), max(a, b), correlation, False))
    named = zip(
        _names(rows, [pair[0] for pair in found]), _names(rows, [pair[1] for pair in found]), found, strict=True
    )
    pairs = [Pair(first, second, correlation, exact) for first, second, (_, _, correlation, exact) in named]
    return sorted(pairs, key=lambda pair: (not pair.exact, -pair.correlation, pair.first, pair.second))


def _names(rows: pa.Table, which: list[int]) -> list[tuple[str, str]]:
    chosen = rows.select(["split", "key"]).take(pa.array(which, pa.int64()))
    return list(zip(chosen["split"].to_pylist(), chosen["key"].to_pylist(), strict=True))
