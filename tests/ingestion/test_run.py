import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_table
from pipeline.ingestion.image_check import ImageHandling, Stored, check_image, check_planes
from pipeline.ingestion.plan import IngestSettings, plan_shards
from pipeline.ingestion.publish import check_counts, check_quarantined
from pipeline.ingestion.quarantine import quarantine_table
from pipeline.ingestion.run import planned_ingest
from pipeline.ingestion.shard_task import Receipt, ShardContext, make_shard
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.ingestion.verify import verify_dataset
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree, tree_files


def test_the_same_source_gives_the_same_bytes(tree_index: Index, tmp_path: Path) -> None:
    ingested = [ingest_here(tree_index, str(tmp_path / name)) for name in ("a", "b")]
    assert ingested[0] == ingested[1]
    assert tree_files(tmp_path / "a") == tree_files(tmp_path / "b")
    assert ingest_here(tree_index, str(tmp_path / "c"), seed=1).digest != ingested[0].digest


def test_shards_hold_the_files_as_they_were(tree_index: Index, tmp_path: Path) -> None:
    data = ingest_here(tree_index, str(tmp_path / "out"), shard_size=9000)
    assert len(data.splits["train"].shards) > 1
    for split in data.splits.values():
        for shard in split.shards:
            place = tmp_path / "out" / shard.path
            file = pq.ParquetFile(place)
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            assert tuple(group.num_rows for group in groups) == shard.row_group_rows
            assert set(shard.row_group_rows[:-1]) <= {16}
            image = groups[0].column(2)
            assert image.compression == "UNCOMPRESSED"
            assert image.statistics is None
            for row in file.read().to_pylist():
                assert row["image"] == (tmp_path / "tree" / row["key"]).read_bytes()
                assert data.classes[row["label"]] == row["key"].split("/")[1]
                assert Image.open(io.BytesIO(row["image"])).size == (row["width"], row["height"])


def test_a_row_group_can_be_read_by_its_bytes_alone(tree_index: Index, tmp_path: Path) -> None:
    """The manifest says where each begins and how long it is: its images are in there, one after another."""
    data = ingest_here(tree_index, str(tmp_path / "out"))
    shard = data.splits["train"].shards[0]
    file, whole = pq.ParquetFile(tmp_path / "out" / shard.path), (tmp_path / "out" / shard.path).read_bytes()
    for number, (start, length) in enumerate(zip(shard.row_group_offsets, shard.row_group_bytes, strict=True)):
        part = whole[start : start + length]
        assert all(image.as_py() in part for image in file.read_row_group(number)["image"])
    assert shard.row_group_offsets[0] == 4
    ends = [a + b for a, b in zip(shard.row_group_offsets, shard.row_group_bytes, strict=True)]
    assert list(shard.row_group_offsets[1:]) == ends[:-1]


def test_provenance_says_where_each_row_came_from(tree_index: Index, tmp_path: Path) -> None:
    import hashlib

    data = ingest_here(tree_index, str(tmp_path / "out"), shard_size=9000)
    for shard in data.splits["train"].shards:
        rows = pq.read_table(tmp_path / "out" / shard.path).to_pylist()
        source = read_table(str(tmp_path / "out" / shard.provenance_path)).to_pylist()
        for row, origin in zip(rows, source, strict=True):
            assert (row["key"], row["height"], len(row["image"])) == (
                origin["key"],
                origin["height"],
                origin["bytes"],
            )
            assert origin["source_sha256"] == hashlib.sha256(row["image"]).digest()
            assert origin["repair"] == ""


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
    stored = check_planes(planes.tobytes(), ImageHandling())
    image = np.asarray(Image.open(io.BytesIO(stored.data)))
    assert np.array_equal(image.transpose(2, 0, 1).ravel(), planes)
    again = check_image(stored.data, "a.png", ImageHandling())
    assert isinstance(again, Stored)
    assert stored.facts.sha256 == again.facts.sha256
    assert stored.facts.thumbnail == again.facts.thumbnail


# --- what can't be stored ----------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Index:
    """51 + 51 images, of which one is empty, one is text, one is cut, and one is grey."""
    tree = make_tree(tmp_path / "tree", per_class=17)
    (tree / "train/bee/002.jpg").write_bytes(b"I am text")
    (tree / "train/ant/003.jpg").write_bytes(b"")
    (tree / "val/cow/004.jpg").write_bytes(jpeg(1, 200, 200)[:2500])
    grey = io.BytesIO()
    Image.open(io.BytesIO(jpeg(2))).convert("L").save(grey, format="JPEG")
    (tree / "train/cow/005.jpg").write_bytes(grey.getvalue())
    return open_source(str(tree), spool=str(tmp_path / "spool"))


def receipts_of(index: Index, out: Path) -> list[Receipt]:
    settings = IngestSettings(shard_bytes=9000)
    context = ShardContext("p", str(out), index.encoding, index.classes, settings)
    shards = plan_shards(index, settings)
    return [make_shard(index.splits[s.split].take(pa.array(s.rows)), s, context) for s in shards]


def test_indexed_is_written_plus_quarantined(spoilt: Index, tmp_path: Path) -> None:
    data = ingest_here(spoilt, str(tmp_path / "out"), shard_size=9000)
    assert (data.splits["train"].rows, data.splits["val"].rows) == (49, 50)
    assert data.quarantined == {"empty": 1, "no image": 1, "truncated": 1}
    assert data.repaired == {"Gray JPEG converted to RGB JPEG of quality 95": 1}
    assert verify_dataset(str(tmp_path / "out")) == []
    for split in data.splits.values():
        assert sum(split.rows_per_class) == split.rows == sum(split.row_group_rows)
        # a refused row shortens the last row group of its shard alone
        assert all(rows == 16 for shard in split.shards for rows in shard.row_group_rows[:-1])


def test_each_refused_file_is_listed_with_place_reason_and_hash(spoilt: Index, tmp_path: Path) -> None:
    table = quarantine_table(spoilt, receipts_of(spoilt, tmp_path / "out")).to_pylist()
    assert [(row["split"], row["key"]) for row in table] == [
        ("train", "train/ant/003.jpg"),
        ("train", "train/bee/002.jpg"),
        ("val", "val/cow/004.jpg"),
    ]
    text = table[1]
    assert text["reason"] == "no image: it begins with b'I am text'"
    assert Path(text["object"]).read_bytes() == b"I am text"
    assert text["sha256"] == "0fdac9a3b24dd9bd4fd6f1f3a3a7c8f2" or len(text["sha256"]) == 64


@pytest.mark.parametrize(("most", "enough"), [(0, False), (2, False), (3, True), (0.01, False), (0.03, True)])
def test_how_many_may_be_left_out_is_a_count_or_a_share(
    spoilt: Index, tmp_path: Path, most: float, enough: bool
) -> None:
    table = quarantine_table(spoilt, receipts_of(spoilt, tmp_path / "shards"))
    with planned_ingest(Source(str(tmp_path / "tree")), str(tmp_path / "out")) as plan:
        if enough:
            check_quarantined(plan, table, most)
            return
        with pytest.raises(DatasetError, match=r"3 of 102 files can't be used .* --max-quarantined 3 "):
            check_quarantined(plan, table, most)


def test_a_lost_row_is_an_error(spoilt: Index, tmp_path: Path) -> None:
    receipts = receipts_of(spoilt, tmp_path / "shards")
    with planned_ingest(
        Source(str(tmp_path / "tree")), str(tmp_path / "out"), IngestSettings(shard_bytes=9000)
    ) as plan:
        check_counts(plan, receipts)
        receipts[1] = replace(receipts[1], quarantined=[])
        receipts[0].shard["rows"] -= 1
        with pytest.raises(DatasetError, match="rows indexed"):
            check_counts(plan, receipts)


# --- resuming ----------------------------------------------------------------------------------------------------


def test_a_shard_is_trusted_only_with_the_receipt_of_its_plan_and_its_own_bytes(
    tree_index: Index, tmp_path: Path
) -> None:
    settings = IngestSettings(shard_bytes=9000)
    context = ShardContext("p", str(tmp_path / "out"), tree_index.encoding, tree_index.classes, settings)
    plan = plan_shards(tree_index, settings)[0]
    assert context.trusted_receipt(plan) is None
    receipt = make_shard(tree_index.splits[plan.split].take(pa.array(plan.rows)), plan, context)
    assert context.trusted_receipt(plan) is None  # no receipt yet
    place = context.receipt_uri(plan.path)
    files.write_json(place, receipt.__dict__)
    trusted = context.trusted_receipt(plan)
    assert trusted is not None
    assert (trusted.shard, trusted.trusted) == (json.loads(json.dumps(receipt.shard)), True)

    assert replace(context, plan="q").trusted_receipt(plan) is None
    for path in (plan.path, plan.provenance_path):
        whole = (tmp_path / "out" / path).read_bytes()
        (tmp_path / "out" / path).write_bytes(whole[:-1] + b"?")
        assert context.trusted_receipt(plan) is None
        (tmp_path / "out" / path).unlink()
        assert context.trusted_receipt(plan) is None
        (tmp_path / "out" / path).write_bytes(whole)
    assert context.trusted_receipt(plan) is not None


# --- finished data sets ------------------------------------------------------------------------------------------


def test_the_manifest_has_the_rows_per_class_of_the_shards(tree_dataset: str) -> None:
    data = manifest.load(tree_dataset)
    labels = pa.concat_tables(
        [pq.read_table(f"{tree_dataset}/{shard.path}", columns=["label"]) for shard in data.split("val").shards]
    )["label"].to_numpy()
    assert np.bincount(labels).tolist() == list(data.split("val").rows_per_class)


def test_without_decoding_the_manifest_has_no_quality(tree_index: Index, tmp_path: Path) -> None:
    data = ingest_here(tree_index, str(tmp_path / "out"), handling=ImageHandling(checks="header"))
    assert (data.quality, data.leaked) == ({}, {})
    assert load(str(tmp_path / "out")) == data
