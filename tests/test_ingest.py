import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import manifest, storage
from pipeline.errors import DatasetError, SourceError
from pipeline.ingest import build_manifest, encode_planes, image_size, plan_shards, planned, shard_bytes
from pipeline.sources import Index, digits, open_source
from pipeline.sources.index import sample_table
from tests.conftest import ingest_here, jpeg, make_tree


@pytest.fixture
def tree_index(tmp_path: Path) -> Index:
    return open_source(str(make_tree(tmp_path / "tree", per_class=17)), spool=str(tmp_path / "spool"))


@pytest.mark.parametrize("shard_size", [1, 3000, 10_000_000])
def test_a_plan_holds_every_row_once(tree_index: Index, shard_size: int) -> None:
    plans = plan_shards(tree_index, 0, shard_size)
    for split, table in tree_index.splits.items():
        rows = np.concatenate([plan.rows for plan in plans if plan.split == split])
        assert np.array_equal(np.sort(rows), np.arange(table.num_rows))
    sizes = [len(plan.rows) for plan in plans if plan.split == "train"]
    assert max(sizes) - min(sizes) <= 1
    assert len({plan.path for plan in plans}) == len(plans)


def test_a_plan_follows_from_keys_and_seed_alone(tree_index: Index) -> None:
    def keys(seed: int) -> list[str]:
        table = tree_index.splits["train"]
        rows = np.concatenate([plan.rows for plan in plan_shards(tree_index, seed) if plan.split == "train"])
        return table.take(rows)["key"].to_pylist()

    assert keys(0) == keys(0)
    assert keys(0) != keys(1)
    assert keys(0) != sorted(keys(0))


def test_the_same_source_gives_the_same_bytes(tree_index: Index, tmp_path: Path) -> None:
    digests = {ingest_here(tree_index, str(tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1
    assert ingest_here(tree_index, str(tmp_path / "c"), seed=1).digest not in digests


def test_shards_hold_the_files_as_they_were(tree_index: Index, tmp_path: Path) -> None:
    data = ingest_here(tree_index, str(tmp_path / "out"), shard_size=9000)
    assert len(data.splits["train"].shards) > 1
    for split in data.splits.values():
        for shard in split.shards:
            place = str(tmp_path / "out" / shard.path)
            file = pq.ParquetFile(place)
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            assert tuple(groups) == shard.row_group_rows
            image = file.metadata.row_group(0).column(2)
            assert image.compression == "UNCOMPRESSED"
            assert image.statistics is None
            for row in file.read().to_pylist():
                assert row["image"] == (tmp_path / "tree" / row["key"]).read_bytes()
                assert data.classes[row["label"]] == row["key"].split("/")[1]
                assert Image.open(io.BytesIO(row["image"])).size == (row["width"], row["height"])


def test_pandas_duckdb_and_datasets_open_the_shards(tree_dataset: str, tmp_path: Path) -> None:
    import datasets
    import duckdb
    import pandas as pd

    shards = f"{tree_dataset}/train/*.parquet"
    assert duckdb.sql(f"select count(*), count(distinct key) from '{shards}'").fetchall() == [(51, 51)]
    assert len(pd.read_parquet(f"{tree_dataset}/train")) == 51
    loaded = datasets.load_dataset(tree_dataset, split="train", cache_dir=str(tmp_path))
    first = loaded[0]
    assert loaded.features["label"].names == ["ant", "bee", "cow"]
    assert first["image"].size == (first["width"], first["height"])
    assert np.asarray(first["image"]).shape == (first["height"], first["width"], 3)


def test_cifar_planes_become_a_lossless_image() -> None:
    planes = np.random.default_rng(0).integers(0, 256, 3072, dtype=np.uint8)
    image = np.asarray(Image.open(io.BytesIO(encode_planes(planes.tobytes()))))
    assert np.array_equal(image.transpose(2, 0, 1).ravel(), planes)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, format=kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello, I am text", r"x\.jpg: is no readable image \(it begins with b'hello, I am text'\)"),
        (b"", r"x\.jpg: is empty"),
        (jpeg(0)[:20], r"x\.jpg: is no readable image"),
        (encoded("BMP"), r"x\.jpg: is a BMP image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        image_size(data, "x.jpg")


def test_an_image_of_too_many_pixels_is_refused_undecoded() -> None:
    bomb = bytearray(encoded("PNG"))
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(SourceError, match=r"30000x30000 pixels|is no readable image"):
        image_size(bytes(bomb), "bomb.png")


def test_a_bad_image_stops_its_shard(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"text")
    samples = sample_table(["k/bad.jpg"], [0], [str(tmp_path / "bad")], [0], [4])
    with pytest.raises(SourceError, match=r"k/bad\.jpg"):
        shard_bytes(samples, "file", ("ant",), 16)


def test_a_missing_shard_is_no_data_set(tree_index: Index) -> None:
    plans = plan_shards(tree_index, 0, 9000)
    written = dict.fromkeys(range(1, len(plans)), (1, "aa"))
    with pytest.raises(DatasetError, match="51 rows indexed"):
        build_manifest(tree_index, plans, written, 0)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: ingest_here(digits.build_index(str(out / "_spool")), str(out)), "holds a finished data set"),
        (lambda out: storage.write_bytes(str(out / "thesis.txt"), b"mine"), r"holds other files \('thesis.txt'\)"),
        (lambda out: out.write_bytes(b""), "is a file"),
    ],
)  # fmt: skip
def test_a_target_in_use_is_left_alone(tmp_path: Path, prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    prepare(out)
    with pytest.raises(DatasetError, match=message), planned("digits", str(out), layout="digits"):
        pass


def test_the_manifest_says_what_the_shards_hold(digits_dataset: str) -> None:
    data = manifest.load(digits_dataset)
    labels = pa.concat_tables(
        [pq.read_table(f"{digits_dataset}/{shard.path}", columns=["label"]) for shard in data.split("val").shards]
    )["label"].to_numpy()
    assert np.bincount(labels).tolist() == list(data.split("val").rows_per_class)
