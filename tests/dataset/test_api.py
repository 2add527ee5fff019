import io
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.core.errors import DatasetError
from pipeline.dataset import Dataset, manifest, open_dataset
from pipeline.dataset.manifest import Split
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import load_index
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.sources import open_source
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree


@pytest.fixture
def dataset(tree_dataset: str) -> Dataset:
    return open_dataset(tree_dataset)


def stored_rows(uri: str, name: str) -> list[dict[str, Any]]:
    shards = manifest.load(uri).split(name).shards
    return [row for shard in shards for row in pq.read_table(f"{uri}/{shard.path}").to_pylist()]


def test_a_data_set_names_its_classes_and_splits(dataset: Dataset, tree_dataset: str) -> None:
    assert dataset.uri == tree_dataset
    assert dataset.manifest == manifest.load(tree_dataset)
    assert dataset.classes == ("ant", "bee", "cow")
    assert dataset.splits == ("train", "val")
    assert list(dataset) == ["train", "val"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_each_row_is_its_image_and_its_label(dataset: Dataset, name: str) -> None:
    rows = stored_rows(dataset.uri, name)
    assert len(dataset[name]) == len(rows) == 51
    for row, (image, label) in zip(rows, dataset[name], strict=True):
        assert (label, image.size, image.mode) == (row["label"], (row["width"], row["height"]), "RGB")
        reference = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")).astype(int)
        assert np.abs(np.asarray(image).astype(int) - reference).max() <= 3  # two versions of libjpeg
    assert dataset[name].labels.tolist() == [row["label"] for row in rows]


def same(first: tuple[Image.Image, int], second: tuple[Image.Image, int]) -> bool:
    return first[1] == second[1] and first[0].tobytes() == second[0].tobytes()


@pytest.mark.parametrize(("index", "row"), [(0, 0), (50, 50), (-1, 50), (-51, 0)])
def test_an_index_counts_from_the_end_if_it_is_negative(dataset: Dataset, index: int, row: int) -> None:
    assert same(dataset["train"][index], list(dataset["train"])[row])


@pytest.mark.parametrize("index", [51, -52, 10**9])
def test_an_index_out_of_range_is_an_index_error(dataset: Dataset, index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index} of a split of 51 rows"):
        dataset["train"][index]


def test_a_slice_is_a_list_of_rows(dataset: Dataset) -> None:
    train = dataset["train"]
    assert [label for _, label in train[10:20:3]] == [train[row][1] for row in (10, 13, 16, 19)]


def test_threads_and_pickled_copies_read_the_same_rows(dataset: Dataset) -> None:
    train = dataset["train"]
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301 - our own bytes
    assert len(pickle.dumps(train)) < 10_000  # the index isn't in it
    rows = np.random.default_rng(0).integers(0, 51, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        for row, found in zip(rows, pool.map(train.__getitem__, rows), strict=True):
            assert same(found, copy[row])


@pytest.mark.parametrize("name", ["train", "val"])
def test_arrow_pandas_and_hugging_face_get_every_row_in_order(dataset: Dataset, name: str) -> None:
    import datasets

    split, rows = dataset[name], stored_rows(dataset.uri, name)
    reader = split.to_arrow()
    sizes = [batch.num_rows for batch in reader]
    assert sizes == list(split.split.row_group_rows)
    table = split.to_arrow().read_all()
    assert table.to_pylist() == rows
    frame = split.to_arrow().read_pandas()
    assert frame["key"].tolist() == [row["key"] for row in rows]
    loaded = datasets.Dataset(table).cast_column("image", datasets.Image())
    assert loaded[0]["image"].size == (rows[0]["width"], rows[0]["height"])
    assert len(loaded) == len(rows)


def test_arrow_reads_no_further_than_it_is_asked(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.dataset import api

    read: list[int] = []

    def counting(uri: str, split: Split, rows: Any, columns: tuple[str, ...]) -> Any:
        read.append(len(rows))
        return read_rows(uri, split, rows, columns)

    monkeypatch.setattr(api, "read_rows", counting)
    monkeypatch.setattr(api, "_GROUPS_AHEAD", 1)
    reader = dataset["train"].to_arrow()
    reader.read_next_batch()
    assert len(read) <= 2 < len(dataset["train"].split.row_group_rows)


def test_a_folder_without_a_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json, .*jobs/ingest\.py"):
        open_dataset(tmp_path)


def test_an_unknown_split_is_answered_with_those_there_are(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="it holds train, val"):
        dataset["test"]


def test_changed_bytes_are_an_error_that_names_the_row(tree_dataset: str, tmp_path: Path) -> None:
    shutil.copytree(tree_dataset, tmp_path / "data")
    split = manifest.load(tree_dataset).split("val")
    path = tmp_path / "data" / split.shards[0].path
    data = bytearray(path.read_bytes())
    data[int(load_index(tree_dataset, split).offset[0]) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="row 0 of the split: not the bytes that were ingested"):
        open_dataset(tmp_path / "data")["val"][0]


def test_an_image_that_was_damaged_before_ingest_is_named(tmp_path: Path) -> None:
    """With --checks header a JPEG is trusted if it begins and ends like one."""
    tree = make_tree(tmp_path / "tree", per_class=2)
    path = tree / "val" / "ant" / "000.jpg"
    path.write_bytes(path.read_bytes()[:-200] + b"\xff\xd9")
    index = open_source(str(tree), spool="")
    ingest_here(index, str(tmp_path / "data"), handling=ImageHandling(checks="header"))
    with pytest.raises(DatasetError, match=r"row \d of the split: truncated: .*; ingest again with --checks decode"):
        list(open_dataset(tmp_path / "data")["val"])
