"""Finds images that occur more than once: duplicates, of equal pixels, and near duplicates.

Near duplicates are searched in three steps. Each step costs more for a pair than the step before, and sees fewer pairs:

1. 64-bit perceptual hashes that differ in at most HASH_DISTANCE bits: of all pairs, or, of more than ALL_PAIRS_ROWS
   images, of those that share one of the groups of `likeness_groups`.
2. 16x16 thumbnails that correlate, also if one image is a crop of the other.
3. The images at 32x32 pixels, in grey, over a finer set of crops.

The measure is the normalised correlation, on which brightness and contrast have no effect.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.progress import Progress, silent
from pipeline.dataset.image_codec import decode
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.schema import THUMBNAIL_PX
from pipeline.ingestion.quality.likeness_groups import likeness_groups
from pipeline.ingestion.quality.pixel_facts import HASH_PX, grey_square

# Chosen so that re-encoded, brightened and slightly cropped photographs are found and no others (tests/ingestion).
HASH_DISTANCE = 14  # bits of 64
THUMBNAIL_CORRELATION = 0.8
PIXEL_CORRELATION = 0.94
TILE_ROWS = 4096  # this many hashes are compared with as many at once: 128 MiB of exclusive ors
TILE_PAIRS = TILE_ROWS**2  # that a task compares, about
PAIRS_AT_ONCE = 4096
ALL_PAIRS_ROWS = 100_000
"""Images of which all pairs are compared: a minute of one core."""

_PAIRS_OF_GROUPS = 9
"""Pairs that share a group of `likeness_groups`, over N ** 1.5 for N images (docs/benchmarks.md)."""

Squares = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Tile = tuple[Rows, Rows]
"""Rows that are compared with rows: each pair of different rows once. Both are the same, or have none in common."""
PAIR_SCHEMA = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("correlation", pa.float32())])
# Near duplicates by their pixels (SHA-256), first < second, sorted: the same whatever rows have these pixels.
NEAR_SCHEMA = pa.schema([("first", pa.binary(32)), ("second", pa.binary(32)), ("correlation", pa.float32())])


@dataclass(frozen=True)
class Searched:
    """What an earlier search has found."""

    pixels: pa.Array  # SHA-256 of the images among which it searched
    near: pa.Table  # of NEAR_SCHEMA


@lru_cache(maxsize=8)
def _crops(side: int, scales: tuple[float, ...], steps: int, one_sided: bool) -> list[tuple[Squares, Squares]]:
    """Returns pairs of matrices: `rows @ square @ columns.T` is a crop of a square, enlarged to its size (bilinear)."""
    whole = np.eye(side, dtype=np.float32)
    crops = [(whole, whole)]
    for scale in scales:
        starts = np.linspace(0, side * (1 - scale), steps)
        matrices = [_stretch(side, start, side * scale) for start in starts]
        crops += [(rows, columns) for rows in matrices for columns in matrices]
        if one_sided:
            crops += [pair for matrix in matrices for pair in ((matrix, whole), (whole, matrix))]
    return crops


def _stretch(side: int, start: float, length: float) -> Squares:
    """Returns float32 [side, side]: the linear interpolation that enlarges [start, start + length) to [0, side)."""
    centres = np.clip(start + (np.arange(side) + 0.5) * length / side - 0.5, 0, side - 1)
    low = np.floor(centres).astype(int)
    matrix = np.zeros((side, side), dtype=np.float32)
    matrix[np.arange(side), low] += 1 - (centres - low)
    matrix[np.arange(side), np.minimum(low + 1, side - 1)] += centres - low
    return matrix


def _normalised(squares: Squares) -> Squares:
    """Returns squares of mean 0 and norm 1, so that the sum of products of two of them is their correlation."""
    centred = squares - squares.mean(axis=(1, 2), keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True) + 1e-6))


def correlations(
    squares: Squares,
    pairs: npt.NDArray[np.int64],
    scales: tuple[float, ...] = (0.95, 0.9),
    steps: int = 3,
    one_sided: bool = False,
) -> npt.NDArray[np.float32]:
    """Returns float32 [N]: for each pair, the highest correlation of one image with the other or a crop of the other.

    squares: float32 [M, S, S]. pairs: int64 [N, 2], indices of squares. scales: sides of the crops, as shares of S.
    steps: positions of the crop in each direction. one_sided: crop the height alone and the width alone, too.
    """
    first, second = pairs.T
    best = np.full(len(pairs), -1.0, dtype=np.float32)
    whole = _normalised(squares)
    whole_first, whole_second = whole[first], whole[second]
    for rows, columns in _crops(squares.shape[1], scales, steps, one_sided):
        # Each image is cropped once, in however many pairs it is: look-alikes are in hundreds of them.
        cropped = _normalised(np.asarray(rows @ squares @ columns.T, dtype=np.float32))
        for crops, wholes in ((cropped[first], whole_second), (cropped[second], whole_first)):
            best = np.maximum(best, np.einsum("nij,nij->n", crops, wholes))
    return best


def _positions(pairs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns (the rows in pairs, ascending; the pairs as indices of these rows: int64 [N, 2])."""
    images, positions = np.unique(pairs, return_inverse=True)
    return images, positions.reshape(pairs.shape)


@dataclass(frozen=True)
class _TileSearch:
    """Finds pairs among one tile of the triangle of all pairs; runs in a Ray task."""

    hashes: npt.NDArray[np.uint64]
    thumbnails: npt.NDArray[np.uint8]

    def __call__(self, tiles: list[Tile]) -> pa.Table:
        """Returns a table of PAIR_SCHEMA without correlations."""
        found = np.concatenate([np.empty((0, 2), dtype=np.int64), *map(self._near, tiles)])
        return pa.table([found[:, 0], found[:, 1], np.zeros(len(found), np.float32)], schema=PAIR_SCHEMA)

    def _near(self, tile: Tile) -> npt.NDArray[np.int64]:
        """Returns int64 [N, 2], pairs of rows."""
        rows, columns = tile
        near = np.bitwise_count(self.hashes[rows][:, None] ^ self.hashes[columns][None, :]) <= HASH_DISTANCE
        if rows[0] == columns[0]:  # the same rows: each pair once
            near = np.triu(near, 1)
        first, second = np.nonzero(near)
        pairs = np.stack([rows[first], columns[second]], axis=1)
        kept = [np.empty(0, dtype=bool)]
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            images, positions = _positions(pairs[start : start + PAIRS_AT_ONCE])
            squares = self.thumbnails[images].astype(np.float32)
            kept.append(correlations(squares, positions) >= THUMBNAIL_CORRELATION)
        return pairs[np.concatenate(kept)]


def _tiles(groups: Iterable[Rows], others: Rows | None = None) -> Iterator[list[Tile]]:
    """Yields tiles that hold all pairs of each group, together as many as a task compares.

    others: rows of none of the groups, with which the rows of each group are compared, too.
    """
    together: list[Tile] = []
    pairs = 0
    for group in groups:
        parts, more = _parts(group), [] if others is None else _parts(others)
        for number, rows in enumerate(parts):
            for columns in parts[number:] + more:
                together.append((rows, columns))
                pairs += len(rows) * len(columns)
                if pairs >= TILE_PAIRS:
                    yield together
                    together, pairs = [], 0
    if together:
        yield together


def _parts(rows: Rows) -> list[Rows]:
    return [rows[start : start + TILE_ROWS] for start in range(0, len(rows), TILE_ROWS)]


@dataclass(frozen=True)
class _PixelCheck:
    """Correlates the pixels of pairs; runs in a Ray task."""

    uri: str
    manifest: Manifest
    places: dict[int, tuple[str, int]]  # for each row of the whole data set: its split, and its index there

    def __call__(self, pairs: npt.NDArray[np.int64]) -> pa.Table:
        """Returns a table of PAIR_SCHEMA. pairs: int64 [N, 2], rows of the whole data set."""
        images, positions = _positions(pairs)
        squares = np.stack(self._squares(images.tolist()))
        found = correlations(squares, positions, scales=(0.97, 0.95, 0.93, 0.9), steps=4, one_sided=True)
        return pa.table([pairs[:, 0], pairs[:, 1], found], schema=PAIR_SCHEMA)

    def _squares(self, images: Sequence[int]) -> list[Squares]:
        """Returns float32 [HASH_PX, HASH_PX], grey, of each image."""
        from PIL import Image

        by_split: dict[str, list[int]] = {}
        for row in images:
            by_split.setdefault(self.places[row][0], []).append(row)
        squares = {}
        for split, members in by_split.items():
            rows = np.array([self.places[row][1] for row in members])
            table = read_rows(self.uri, self.manifest.split(split), rows, ("image",))
            for row, data in zip(members, table["image"], strict=True):
                squares[row] = grey_square(Image.fromarray(decode(data.as_py())), HASH_PX).astype(np.float32)
        return [squares[row] for row in images]


def num_compared(images: int) -> float:
    """Returns the number of pairs whose hashes are compared among so many images, about."""
    return images**2 / 2 if images <= ALL_PAIRS_ROWS else _PAIRS_OF_GROUPS * images**1.5


def near_duplicates(
    uri: str, manifest: Manifest, rows: pa.Table, earlier: Searched | None = None, progress: Progress = silent
) -> pa.Table:
    """Returns a table of NEAR_SCHEMA: the near duplicates among all rows. Rows of equal pixels are searched as one.

    rows: a table of `read_provenance` with key, pixel_sha256, perceptual_hash and thumbnail. earlier: a search among
    some of these images, perhaps with others; only pairs with an image that wasn't among them are searched.
    """
    pixels = rows["pixel_sha256"].combine_chunks()
    order = np.sort(np.unique(np.array(pixels.to_pylist(), dtype="S32"), return_index=True)[1])
    kinds = pixels.take(pa.array(order))
    is_new = None
    tables = []
    if earlier is not None:
        is_known = pc.is_in(kinds, value_set=earlier.pixels)
        is_new = np.flatnonzero(~is_known.to_numpy(zero_copy_only=False))
        # Not all that `earlier.near` names: pixels that left with one image and came back with another are searched.
        known = kinds.filter(is_known)
        both = [pc.is_in(earlier.near[name], value_set=known) for name in ("first", "second")]
        tables.append(earlier.near.filter(pc.and_(*both)))
    found = _near_pairs(uri, manifest, rows, order, is_new, progress)
    named = [sorted((pixels[one].as_py(), pixels[other].as_py())) for one, other, _ in found]
    columns = [[one for one, _ in named], [other for _, other in named], [correlation for *_, correlation in found]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, NEAR_SCHEMA, strict=True)]
    tables.append(pa.Table.from_arrays(arrays, schema=NEAR_SCHEMA))
    return pa.concat_tables(tables).sort_by([("first", "ascending"), ("second", "ascending")])


def hashes_and_thumbnails(rows: pa.Table) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Returns (perceptual hashes [N], grey thumbnails [N, S, S]) of rows of a data set's provenance."""
    thumbnails = np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8)
    return rows["perceptual_hash"].to_numpy(), thumbnails.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)


def candidate_pairs(
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
    groups: Sequence[Rows] | None = None,
    new: Rows | None = None,
    progress: Progress = silent,
) -> npt.NDArray[np.int64]:
    """Returns int64 [N, 2], sorted: pairs of images whose hashes and thumbnails are near.

    groups: rows whose pairs are compared. None: all rows, or of more than ALL_PAIRS_ROWS those of `likeness_groups`.
    new: ascending rows, if only pairs with one of these are wanted. They are compared with all rows, if that is less.
    """
    count = len(hashes)
    if new is not None and groups is None and 2 * len(new) * count <= ALL_PAIRS_ROWS**2:
        tiles = list(_tiles([new], np.setdiff1d(np.arange(count), new)))
    else:
        if groups is None:
            groups = likeness_groups(thumbnails, progress) if count > ALL_PAIRS_ROWS else [np.arange(count)]
        tiles = list(_tiles(groups))
    search = _TileSearch(hashes, thumbnails)
    found = map_tables(search, tiles, PAIR_SCHEMA, lambda done: progress("duplicates", done, len(tiles)), computes=True)
    together = pa.concat_tables([PAIR_SCHEMA.empty_table(), *found])
    pairs = np.stack([together[name].to_numpy() for name in ("first", "second")], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)  # a pair may share several groups
    return pairs if new is None else pairs[np.isin(pairs, new).any(axis=1)]


def _near_pairs(
    uri: str, manifest: Manifest, rows: pa.Table, order: Rows, new: Rows | None, progress: Progress
) -> list[tuple[int, int, float]]:
    """Returns (row, row, correlation) of the near duplicates among the rows `order` of the table.

    new: indices in `order`; only pairs with one of them are searched. None: all pairs.
    """
    if new is not None and not len(new):
        return []
    hashes, thumbnails = hashes_and_thumbnails(rows.select(["perceptual_hash", "thumbnail"]).take(pa.array(order)))
    candidates = order[candidate_pairs(hashes, thumbnails, new=new, progress=progress)]
    if not len(candidates):
        return []
    needed = np.unique(candidates)
    places = rows.select(["split", "row"]).take(pa.array(needed)).to_pydict()
    place = dict(zip(needed.tolist(), zip(places["split"], places["row"], strict=True), strict=True))
    runs = [candidates[start : start + PAIRS_AT_ONCE // 4] for start in range(0, len(candidates), PAIRS_AT_ONCE // 4)]
    check = _PixelCheck(uri, manifest, place)
    checked = map_tables(check, runs, PAIR_SCHEMA, lambda done: progress("compare", done, len(runs)), computes=True)
    table = pa.concat_tables(checked).to_pylist()
    return [(r["first"], r["second"], float(r["correlation"])) for r in table if r["correlation"] >= PIXEL_CORRELATION]
