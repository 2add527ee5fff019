"""Parquet files with a column of images, as Hugging Face's data sets have them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import Index, Source, open_source
from tests.support.pictures.images import jpeg, rows_of, write_tree

CLASSES = ["zebra", "ant", "bee"]  # not in alphabetical order: the metadata's order counts
Rows = list[tuple[int, bytes, str | None]]


def rows(start: int, count: int) -> Rows:
    """Returns (label, bytes, file name) of some images."""
    return [(n % 3, jpeg(start + n), f"im{start + n:03d}.jpg") for n in range(count)]


TRAIN, VAL, TEST = rows(0, 12), rows(100, 6), rows(200, 6)
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}


def parquet(
    found: Rows,
    *,
    features: dict[str, Any] | None = FEATURES,
    labels: str = "int",
    image: str = "struct",
    extra: dict[str, list[Any]] | None = None,
    name: str = "image",
) -> bytes:
    values: list[Any] = [{"bytes": data, "path": path} for _, data, path in found]
    if image == "binary":
        values = [data for _, data, _ in found]
    kind = pa.binary() if image == "binary" else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {name: pa.array(values, kind)}
    columns["label"] = [label if labels == "int" or label < 0 else CLASSES[label] for label, _, _ in found]
    table = pa.table({**columns, **(extra or {})})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=5)
    return out.getvalue()


def opened(path: Path, tmp_path: Path, **options: Any) -> Index:
    return open_source(Source(str(path), **options), spool=str(tmp_path / "spool"))


def folders(splits: dict[str, Rows]) -> dict[str, bytes]:
    return {
        f"{split}/{CLASSES[label]}/{path}".removeprefix("/"): data
        for split, found in splits.items()
        for label, data, path in found
    }


LAYOUTS: dict[str, tuple[dict[str, bytes], dict[str, Rows]]] = {
    "hub": (
        {
            "README.md": b"---\n",
            "data/train-00000-of-00002.parquet": parquet(TRAIN[:7]),
            "data/train-00001-of-00002.parquet": parquet(TRAIN[7:]),
            "data/validation-00000-of-00001.parquet": parquet(VAL),
            "data/test-00000-of-00001.parquet": parquet(TEST),
        },
        {"train": TRAIN, "val": VAL, "test": TEST},
    ),
    "converted by the hub": (
        {"default/train/0000.parquet": parquet(TRAIN), "default/validation/0000.parquet": parquet(VAL)},
        {"train": TRAIN, "val": VAL},
    ),
    "an empty file first": (
        {"train-0.parquet": parquet([]), "train-1.parquet": parquet(TRAIN), "val-0.parquet": parquet(VAL)},
        {"train": TRAIN, "val": VAL},
    ),
    "one file": ({"all.parquet": parquet(TRAIN)}, {"": TRAIN}),
    "words": ({"all.parquet": parquet(TRAIN, features=None, labels="str")}, {"": TRAIN}),
    "other columns": (
        {"x.parquet": parquet(TRAIN, features=None, labels="str", extra={"id": list(range(12)), "score": [0.5] * 12})},
        {"": TRAIN},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet_with_images_gives_the_rows_of_class_folders(tmp_path: Path, layout: str) -> None:
    files, like = LAYOUTS[layout]
    index = opened(write_tree(tmp_path / "source", files), tmp_path)
    expected = opened(write_tree(tmp_path / "like", folders(like)), tmp_path)
    assert index.layout == "parquet"
    assert rows_of(index) == rows_of(expected)
    assert index.classes == (tuple(sorted(CLASSES)) if layout in ("words", "other columns") else tuple(CLASSES))
    assert index.num_labelled == sum(map(len, like.values()))


@pytest.mark.parametrize(("column", "words"), [("split", ("train", "val")), ("is_valid", (False, True))])
def test_a_column_of_splits_is_heeded(tmp_path: Path, column: str, words: tuple[object, object]) -> None:
    first, second = [words[0]] * 9 + [words[1]] * 3, [words[1]] * 6
    files = {
        "0.parquet": parquet(TRAIN, extra={column: first}),
        "1.parquet": parquet(VAL, extra={column: second}),
    }
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    like = write_tree(tmp_path / "like", folders({"train": TRAIN[:9], "val": TRAIN[9:] + VAL}))
    assert rows_of(index) == rows_of(opened(like, tmp_path))
    assert index.notes[0].endswith(f", splits from column {column!r}")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"split": ["train"] * 5 + ["?"]}, r"1\.parquet: column 'split' has 'train' and also '\?', which is no split"),
        ({"split": ["a", "b"] * 3}, r"1\.parquet: column 'split' names no splits, as that of the first file"),
        ({}, r"1\.parquet: no column 'split', which the first file has"),
    ],
)
def test_a_file_whose_rows_have_no_split_is_refused(tmp_path: Path, second: dict[str, list[str]], message: str) -> None:
    first = parquet(TRAIN, extra={"split": ["train"] * 9 + ["val"] * 3})
    files = {"0.parquet": first, "1.parquet": parquet(VAL, extra=second)}
    with pytest.raises(SourceError, match=message):
        opened(write_tree(tmp_path / "s", files), tmp_path)


def test_numbers_of_which_one_is_missing_are_labels(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": path} for _, data, path in TRAIN]
    labels = [float(label) for label, _, _ in TRAIN[:-1]] + [float("nan")]
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels}), out)
    index = opened(write_tree(tmp_path / "s", {"a.parquet": out.getvalue()}), tmp_path)
    assert index.classes == ("0", "1", "2")
    assert [each.reason for each in index.unusable] == ["no label in column 'label'"]


def test_without_file_names_the_key_is_the_row_in_its_split(tmp_path: Path) -> None:
    nameless = [(label, data, None) for label, data, _ in TRAIN]
    for number, cut in enumerate((12, 5)):  # however the rows are cut into files
        files = {"train-0.parquet": parquet(nameless[:cut]), "val-0.parquet": parquet(VAL)}
        files |= {"train-1.parquet": parquet(nameless[cut:])} if cut < 12 else {}
        index = opened(write_tree(tmp_path / f"s{number}", files), tmp_path)
        found = rows_of(index)["train"]
        assert found == sorted((f"train/{CLASSES[l]}/{n:08d}", CLASSES[l], d) for n, (l, d, _) in enumerate(TRAIN))


def test_a_file_itself_and_a_column_of_bytes_are_read(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "s", {"photos.parquet": parquet(TRAIN, image="binary"), "notes.txt": b"x"})
    index = opened(source / "photos.parquet", tmp_path)
    assert index.name == "photos"
    assert sorted(data for each in rows_of(index).values() for _, _, data in each) == sorted(d for _, d, _ in TRAIN)


def test_a_test_split_without_labels_is_left_aside(tmp_path: Path) -> None:
    files = {
        "train-0.parquet": parquet(TRAIN),
        "validation-0.parquet": parquet(VAL),
        "test-0.parquet": parquet([(-1, data, path) for _, data, path in TEST]),
    }
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    assert set(index.splits) == {"train", "val"}
    assert index.ignored == {"images of test without labels": 6}


def test_single_rows_without_label_or_image_are_named(tmp_path: Path) -> None:
    found = [*TRAIN, (-1, jpeg(7), "lost.jpg"), (0, b"", "empty.jpg")]
    index = opened(write_tree(tmp_path / "s", {"train-0.parquet": parquet(found)}), tmp_path)
    assert [(each.key, each.reason) for each in index.unusable] == [("train/lost.jpg", "no label in column 'label'")]
    lengths = {row["key"]: row["length"] for split in index.splits.values() for row in split.to_pylist()}
    assert lengths["zebra/empty.jpg"] == 0  # refused as empty when it is looked at
    assert index.num_labelled == len(found)


TWO = {**FEATURES, "coarse": {"_type": "ClassLabel", "names": ["a", "b"]}}
RENAMED = {"image": {"_type": "Image"}, "fine": FEATURES["label"], "coarse": TWO["coarse"]}


def test_the_user_chooses_between_two_columns_of_labels(tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(parquet(TRAIN, features=None, extra={"coarse": [0, 1] * 6})))
    table = table.rename_columns(["image", "fine", "coarse"])
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": RENAMED}})})
    (tmp_path / "s").mkdir()
    pq.write_table(table, tmp_path / "s/all.parquet")
    with pytest.raises(
        SourceError, match="may be in any of the columns 'fine', 'coarse'; choose one with --label-column"
    ):
        opened(tmp_path / "s", tmp_path)
    assert opened(tmp_path / "s", tmp_path, label_column="coarse").classes == ("a", "b")
    assert opened(tmp_path / "s", tmp_path, label_column="fine").classes == tuple(CLASSES)


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "cut": ({"train-0.parquet": parquet(TRAIN)[:-200]}, r"train-0\.parquet: the Parquet file is truncated or damaged"),
    "empty": ({"train-0.parquet": b""}, r"train-0\.parquet: the Parquet file is truncated or damaged"),
    "second cut": (
        {"train-0.parquet": parquet(TRAIN), "train-1.parquet": parquet(TRAIN)[:300]},
        r"train-1\.parquet: the Parquet file is truncated or damaged",
    ),
    "no labels": (
        {"a.parquet": parquet(TRAIN, features=None, extra={"label": [0.25] * 12})},
        r"a\.parquet: no column of labels among \['image', 'label'\]; name it with --label-column",
    ),
    "two configurations": (
        {"32px/train-0.parquet": parquet(TRAIN), "64px/train-0.parquet": parquet(TRAIN)},
        "several configurations of a data set, in '32px', '64px'; give one of these folders",
    ),
    "label out of range": ({"a.parquet": parquet([*TRAIN, (3, jpeg(0), "x.jpg")])}, "label 3, but there are 3 names"),
    "other columns in a later file": (
        {"train-0.parquet": parquet(TRAIN), "train-1.parquet": parquet(TRAIN, name="picture")},
        r"train-1\.parquet: no column 'image', which the first file has",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    files, message = BAD[kind]
    with pytest.raises(SourceError, match=message) as caught:
        opened(write_tree(tmp_path / "s", files), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    data = bytearray(parquet(TRAIN))
    data[4:60] = b"\xff" * 56  # the header of the first page
    with pytest.raises(SourceError, match=r"train-0\.parquet: the Parquet file is truncated or damaged"):
        opened(write_tree(tmp_path / "s", {"train-0.parquet": bytes(data)}), tmp_path)
