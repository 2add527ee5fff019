import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import manifest
from pipeline.errors import DatasetError
from pipeline.rows import RowIndex, load_index, read_images


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
def test_a_row_is_read_by_itself(request: pytest.FixtureRequest, fixture: str, name: str) -> None:
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
    from pipeline import objects, storage

    for name, _ in storage.list_files(tree_dataset):
        storage.write_bytes(f"{s3}/rows/{name}", storage.read_bytes(f"{tree_dataset}/{name}"))
    index = index_of(f"{s3}/rows")
    order = np.random.default_rng(0).permutation(51)
    before = objects.sent()
    assert read_images(index, order) == read_images(index_of(tree_dataset), order)
    sent = objects.sent().plus(before, -1)
    assert (sent.get, sent.bytes_read) == (51, int(index.length.sum()))  # no byte that isn't needed


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
