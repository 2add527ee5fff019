"""Measures the search for near duplicates as a data set grows: pairs compared, CPU seconds, and what is found.

The images of a data set grow by mixing, turning and shifting their thumbnails. Of the near duplicates that the data set
itself holds, by all pairs, the table says how many are found among more and more other images.

Examples:
    uv run jobs/bench/duplicates.py --data data/photos
    uv run jobs/bench/duplicates.py --data data/photos --images 300000 1000000
"""

import resource
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from jobs.terminal import command
from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_provenance
from pipeline.ingestion.quality.duplicates import (
    ALL_PAIRS_ROWS,
    candidate_pairs,
    hashes_and_thumbnails,
    near_duplicates,
)
from pipeline.ingestion.quality.likeness_groups import likeness_groups
from pipeline.ingestion.quality.pairs import pairs_of
from pipeline.ingestion.quality.pixel_facts import perceptual_hash
from pipeline.storage import files

_AT_ONCE = 50_000
Thumbnails = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Args:
    """Flags."""

    data: Annotated[str, command.option("an ingested data set whose images were decoded", "URI")]
    images: Annotated[tuple[int, ...], command.option("sizes to measure", "N...", "30,000 100,000 300,000")] = (
        30_000,
        100_000,
        300_000,
    )


def main(args: Args) -> None:
    """Measures each size and prints a table."""
    hashes, thumbnails, near = known(args.data)
    rows = []
    for wanted in args.images:
        draws = np.random.default_rng(wanted)
        more = grown(thumbnails, max(0, wanted - len(hashes)), draws)
        order = draws.permutation(len(hashes) + len(more))
        whole, its_hashes = np.concatenate([thumbnails, more])[order], np.concatenate([hashes, hashes_of(more)])[order]
        rows.append((f"{len(order):,}", measure(its_hashes, whole, np.sort(np.argsort(order)[near], axis=1))))
    command.print_table(f"{len(near):,} near duplicates of {args.data}, and what is found among N images", rows)


def known(uri: str) -> tuple[Hashes, Thumbnails, Rows]:
    """Returns hashes and thumbnails of a data set's different images, and its near duplicates: int64 [N, 2], rows."""
    data = manifest.load(files.absolute(uri))
    if data.settings["handling"]["checks"] != "decode":
        raise DatasetError(f"--data {uri}: its images weren't decoded by the ingest; ingest them with --checks decode")
    rows = read_provenance(uri, data, ["key", "pixel_sha256", "perceptual_hash", "thumbnail"])
    if rows.num_rows > ALL_PAIRS_ROWS:
        raise DatasetError(f"--data {uri}: {rows.num_rows:,} rows, and all pairs of {ALL_PAIRS_ROWS:,} are the most")
    names = zip(rows["split"].to_pylist(), rows["key"].to_pylist(), strict=True)
    positions = {name: row for row, name in enumerate(names)}
    pairs = [pair for pair in pairs_of(rows, near_duplicates(uri, data, rows)) if not pair.exact]
    near = np.array([(positions[pair.first], positions[pair.second]) for pair in pairs], np.int64).reshape(-1, 2)
    return *hashes_and_thumbnails(rows), near


def grown(thumbnails: Thumbnails, count: int, draws: np.random.Generator) -> Thumbnails:
    """Returns so many other thumbnails: two of the given ones mixed, turned and shifted."""
    found = [thumbnails[:0]]
    for start in range(0, count, _AT_ONCE):
        number = min(_AT_ONCE, count - start)
        first, second = (thumbnails[draws.integers(len(thumbnails), size=number)] for _ in range(2))
        share = draws.uniform(0.3, 0.7, (number, 1, 1))
        mixed = share * first + (1 - share) * second[:, :, ::-1]
        turns = draws.integers(4, size=number)
        for turn in range(1, 4):
            mixed[turns == turn] = np.rot90(mixed[turns == turn], turn, (1, 2))
        found.append(np.roll(mixed, int(draws.integers(-3, 4)), 2).astype(np.uint8))
    return np.concatenate(found)


def hashes_of(thumbnails: Thumbnails) -> Hashes:
    """Returns the perceptual hashes of the thumbnails, enlarged."""
    return np.array([perceptual_hash(each.repeat(2, 0).repeat(2, 1).astype(float)) for each in thumbnails], np.uint64)


def measure(hashes: Hashes, thumbnails: Thumbnails, near: Rows) -> str:
    """Returns a line: pairs compared, CPU seconds of this process, share of the pairs `near` that are found, memory."""
    started = time.process_time()
    groups = likeness_groups(thumbnails)
    pairs = candidate_pairs(hashes, thumbnails, groups)
    seconds = time.process_time() - started
    compared = sum(len(group) * (len(group) - 1) / 2 for group in groups)
    found = {tuple(pair) for pair in pairs.tolist()}
    share = sum(tuple(pair) in found for pair in near.tolist()) / max(1, len(near))
    of_all = 100 * compared / (len(hashes) ** 2 / 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{len(groups):,} groups, {compared:.3g} pairs compared, {of_all:.2g} % of all, "
        f"{seconds:.0f} CPU seconds, {share:.4f} found, {peak:.1f} GiB at most"
    )


if __name__ == "__main__":
    command.run(main, Args, __doc__)
