import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import (
    REMOTE_GAP_BYTES,
    REMOTE_RANGE_BYTES,
    RowIndex,
    coalesce_rows,
    load_index,
    read_images,
)
from pipeline.storage.request_counts import requests_sent
from tests.support.pictures.datasets import copied

NONE = np.empty(0, np.int64)
INDEX = RowIndex((), *[NONE] * 9)


def stored(uri: str, name: str) -> list[dict[str, Any]]:
    shards = manifest.load(uri).split(name).shards
    return [row for shard in shards for row in pq.read_table(f"{uri}/{shard.path}").to_pylist()]


@pytest.fixture
def copy(tree_dataset: str, tmp_path: Path) -> Path:
    shutil.copytree(tree_dataset, tmp_path / "data")
    return tmp_path / "data"


def index_of(uri: Path | str) -> RowIndex:
    return load_index(str(uri), manifest.load(str(uri)).split("train"))


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("fixture", ["tree_dataset", "digits_dataset"])
def test_any_row_is_read_by_its_index(request: pytest.FixtureRequest, fixture: str, name: str) -> None:
    uri = request.getfixturevalue(fixture)
    rows = stored(uri, name)
    index = load_index(uri, manifest.load(uri).split(name))
    order = np.random.default_rng(0).permutation(len(rows))[:300]
    images = read_images(index, order)
    for row, image in zip(order.tolist(), images, strict=True):
        assert bytes(image) == rows[row]["image"]
        facts = (index.label[row], index.height[row], index.width[row])
        assert facts == tuple(rows[row][column] for column in ("label", "height", "width"))


def test_rows_are_read_from_a_bucket(s3: str, tree_dataset: str) -> None:
    index = index_of(copied(tree_dataset, f"{s3}/rows"))
    order = np.random.default_rng(0).permutation(51)
    before = requests_sent()
    assert read_images(index, order) == read_images(index_of(tree_dataset), order)
    sent = requests_sent().plus(before, -1)
    ranges, _ = coalesce_rows(index, order)
    assert sent.get == len(ranges) < 51
    assert sent.bytes_read == sum(each.length for each in ranges)
    before, far = requests_sent(), order[:1]
    assert read_images(index, far) == read_images(index_of(tree_dataset), far)
    sent = requests_sent().plus(before, -1)
    assert (sent.get, sent.bytes_read) == (1, int(index.length[far[0]]))  # no byte that isn't needed


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 300_000)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.data(),
)
def test_neighbouring_rows_are_one_request_that_holds_each_of_them(
    images: list[tuple[int, int]], num_shards: int, data: st.DataObject
) -> None:
    """Gaps before images, and their lengths, in shards; rows in any order, some twice."""
    shard = np.sort(np.arange(len(images)) % num_shards)
    offset, length = np.zeros(len(images), dtype=np.int64), np.array([each[1] for each in images])
    end: dict[int, int] = {}
    for row, (gap, size) in enumerate(images):
        offset[row] = end.get(int(shard[row]), 4) + gap
        end[int(shard[row])] = int(offset[row]) + size
    index = replace(INDEX, shard=shard.astype(np.int32), offset=offset, length=length.astype(np.int32))
    rows = np.array(data.draw(st.lists(st.integers(0, len(images) - 1), max_size=80)), dtype=np.int64)
    ranges, range_of = coalesce_rows(index, rows)
    for row, number in zip(rows, range_of, strict=True):
        own = ranges[number]
        assert own.shard == shard[row]
        assert own.offset <= offset[row]
        assert offset[row] + length[row] <= own.offset + own.length
    assert set(range_of) == set(range(len(ranges)))
    for before, after in pairwise(ranges):
        assert (before.shard, before.offset + before.length) < (after.shard, after.offset + 1)
    seen = set(rows.tolist())
    for number, each in enumerate(ranges):
        members = sorted(set(rows[range_of == number].tolist()))
        assert each.row == members[0]
        assert each.length <= REMOTE_RANGE_BYTES or len(members) == 1
        gaps = [offset[b] - offset[a] - length[a] for a, b in pairwise(members)]
        assert all(gap <= REMOTE_GAP_BYTES for gap in gaps)
    for a, b in pairwise(sorted(seen)):
        if shard[a] == shard[b] and offset[b] - offset[a] - length[a] <= REMOTE_GAP_BYTES:
            first, second = (int(range_of[rows.tolist().index(row)]) for row in (a, b))
            too_long = offset[b] + length[b] - ranges[first].offset > REMOTE_RANGE_BYTES
            assert first == second or too_long


def test_a_flipped_bit_is_named_with_its_shard_and_row_group(copy: Path) -> None:
    index = index_of(copy)
    split = manifest.load(str(copy)).split("train")
    row = split.row_group_rows[0] + 1  # in the second row group
    shard, group = split.row_group_places[1]
    path = copy / shard.path
    data = bytearray(path.read_bytes())
    data[int(index.offset[row]) + int(index.length[row]) // 2] ^= 4
    path.write_bytes(data)
    read_images(index, np.arange(row))
    with pytest.raises(DatasetError) as caught:
        read_images(index, np.arange(51))
    assert f"{shard.path}, row group {group}, row {row} of the split: not the bytes that were ingested" in str(
        caught.value
    )


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:500])])
def test_a_shard_that_is_gone_or_cut_is_named(copy: Path, damage: Any) -> None:
    shard = manifest.load(str(copy)).split("train").shards[-1]
    damage(copy / shard.path)
    with pytest.raises(DatasetError, match=rf"{shard.path}, row group \d+, row \d+ of the split: can't be read"):
        read_images(index_of(copy), np.arange(51))
