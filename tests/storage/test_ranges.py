"""Byte ranges: neighbours are one read, no read is too large, no piece is lost."""

import numpy as np
import pytest

from pipeline.storage.ranges import Range, coalesce

CASES = [
    # (object, offset, length) of each piece; reads with a gap of at most 10 bytes and at most 100 bytes each
    ([], []),
    ([(0, 5, 20)], [Range(0, 5, 20, (0,))]),
    ([(0, 30, 10), (0, 0, 20)], [Range(0, 0, 40, (1, 0))]),  # a gap of 10 bytes; not in order
    ([(0, 0, 20), (0, 31, 10)], [Range(0, 0, 20, (0,)), Range(0, 31, 10, (1,))]),  # a gap of 11 bytes
    ([(1, 20, 10), (0, 0, 20)], [Range(0, 0, 20, (1,)), Range(1, 20, 10, (0,))]),  # two objects
    ([(0, 0, 60), (0, 60, 40)], [Range(0, 0, 100, (0, 1))]),  # exactly as large as a read may be
    ([(0, 0, 60), (0, 60, 41)], [Range(0, 0, 60, (0,)), Range(0, 60, 41, (1,))]),
    ([(0, 0, 500), (0, 500, 10)], [Range(0, 0, 500, (0,)), Range(0, 500, 10, (1,))]),  # larger than a read, alone
    ([(0, 0, 20), (0, 0, 20)], [Range(0, 0, 20, (0, 1))]),  # one piece that is wanted twice
    ([(0, 0, 90), (0, 10, 10), (0, 95, 5)], [Range(0, 0, 100, (0, 1, 2))]),  # the gap is counted from the largest end
]


@pytest.mark.parametrize(("pieces", "expected"), CASES)
def test_neighbouring_pieces_are_one_read(pieces: list[tuple[int, int, int]], expected: list[Range]) -> None:
    objects, offsets, lengths = (list(column) for column in zip(*pieces, strict=True)) if pieces else ([], [], [])
    assert coalesce(objects, offsets, lengths, max_gap_bytes=10, max_range_bytes=100) == expected


def test_every_piece_lies_in_one_read_and_no_read_is_too_large() -> None:
    generator = np.random.default_rng(0)
    objects = generator.integers(0, 3, 500)
    offsets, lengths = generator.integers(0, 50_000, 500), generator.integers(1, 80, 500)
    ranges = coalesce(objects, offsets, lengths, max_gap_bytes=40, max_range_bytes=400)
    assert sorted(item for each in ranges for item in each.items) == list(range(500))
    assert all(each.length <= 400 for each in ranges)
    for each in ranges:
        for item in each.items:
            assert objects[item] == each.object
            assert each.offset <= offsets[item]
            assert offsets[item] + lengths[item] <= each.offset + each.length
