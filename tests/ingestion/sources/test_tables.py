"""Tables of (file, label[, split]) with a folder of images: the rows of class folders of the same images."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.found import found_lines
from pipeline.ingestion.sources import Index, Source, open_source
from tests.support.pictures.images import jpeg, make_tar, rows_of, write_tree

CLASSES = ("ant", "bee", "cow")
Files = dict[str, bytes]


def images(start: int = 0, count: int = 12) -> dict[str, tuple[str, bytes]]:
    """Returns {stem: (class, bytes)}."""
    return {f"im{start + n:03d}": (CLASSES[n % 3], jpeg(start + n)) for n in range(count)}


TRAIN, VAL, TEST = images(), images(100, 6), images(200, 6)


def csv(rows: list[tuple[str, ...]], delimiter: str = ",") -> bytes:
    return "".join(delimiter.join(row) + "\n" for row in rows).encode()


def opened(path: Path | str, tmp_path: Path, **options: object) -> Index:
    return open_source(Source(str(path), **options), spool=str(tmp_path / "spool"))


def table(found: dict[str, tuple[str, bytes]], *, suffix: str = ".jpg", below: str = "") -> list[tuple[str, ...]]:
    return [(f"{below}{stem}{suffix}", label) for stem, (label, _) in found.items()]


def flat(found: dict[str, tuple[str, bytes]], below: str = "") -> Files:
    return {f"{below}{stem}.jpg": data for stem, (_, data) in found.items()}


def class_folders(splits: dict[str, dict[str, tuple[str, bytes]]]) -> Files:
    return {
        f"{split}/{label}/{stem}.jpg".removeprefix("/"): data
        for split, found in splits.items()
        for stem, (label, data) in found.items()
    }


def parquet(rows: list[tuple[str, ...]]) -> bytes:
    out = io.BytesIO()
    columns = list(zip(*rows, strict=True))
    pq.write_table(pa.table({column[0]: list(column[1:]) for column in columns}), out)
    return out.getvalue()


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def stems(found: dict[str, tuple[str, bytes]]) -> list[str]:
    return list(found)


def labels_of(found: dict[str, tuple[str, bytes]]) -> list[str]:
    return [label for label, _ in found.values()]


def coco(found: dict[str, tuple[str, bytes]]) -> bytes:
    """Returns annotations as iNaturalist has them; one image has two boxes of its class."""
    boxes = [{"image_id": n, "category_id": 7 + CLASSES.index(label)} for n, label in enumerate(labels_of(found))]
    return as_json(
        {
            "info": {"year": 2021},
            "images": [{"id": n, "file_name": f"{stem}.jpg", "width": 32} for n, stem in enumerate(found)],
            "annotations": [*boxes, boxes[0]],
            "categories": [{"id": 7 + n, "name": name} for n, name in enumerate(CLASSES)],
        }
    )


HEADER = [("file", "label")]
ONE = {"": TRAIN}
SPLIT = {"train": TRAIN, "val": VAL}
THREE = {"train": TRAIN, "val": VAL, "test": TEST}
by_split = [(*row, split) for split, found in THREE.items() for row in table(found)]
ALL = {**TRAIN, **VAL, **TEST}

# {name: (files, the class folders that they are like)}
LAYOUTS: dict[str, tuple[Files, dict[str, dict[str, tuple[str, bytes]]]]] = {
    "beside": ({"labels.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN)}, ONE),
    "above": ({"labels.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN, "images/")}, ONE),
    "one level down": ({"data/labels.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN, "data/images/")}, ONE),
    "in a folder of its own": ({"meta/labels.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN, "images/")}, ONE),
    "with folders": ({"a.csv": csv(HEADER + table(TRAIN, below="images/")), **flat(TRAIN, "images/")}, ONE),
    "paths of another machine": (
        {"a.csv": csv(HEADER + table(TRAIN, below="/home/me/kaggle/images/")), **flat(TRAIN, "images/")},
        ONE,
    ),
    "windows paths": ({"a.csv": csv(HEADER + table(TRAIN, below=".\\images\\")), **flat(TRAIN, "images/")}, ONE),
    "without suffix": ({"a.csv": csv([("id", "breed"), *table(TRAIN, suffix="")]), **flat(TRAIN, "train/")}, ONE),
    "columns in another order": (
        {"a.csv": csv([("kind", "picture"), *((b, a) for a, b in table(TRAIN))]), **flat(TRAIN)},
        ONE,
    ),
    "no header": ({"a.csv": csv(table(TRAIN)), **flat(TRAIN)}, ONE),
    "semicolons": ({"a.csv": csv(HEADER + table(TRAIN), ";"), **flat(TRAIN)}, ONE),
    "tabs": ({"a.tsv": csv(HEADER + table(TRAIN), "\t"), **flat(TRAIN)}, ONE),
    "byte order mark": ({"a.csv": b"\xef\xbb\xbf" + csv(HEADER + table(TRAIN)), **flat(TRAIN)}, ONE),
    "quotes": (
        {"a.csv": csv([("file", "label"), *((f'"{a}"', f'"{b}"') for a, b in table(TRAIN))]), **flat(TRAIN)},
        ONE,
    ),
    "parquet": ({"labels.parquet": parquet(HEADER + table(TRAIN)), **flat(TRAIN, "images/")}, ONE),
    "jsonl": (
        {
            "metadata.jsonl": "".join(f'{{"file_name": "{a}", "label": "{b}"}}\n' for a, b in table(TRAIN)).encode(),
            **flat(TRAIN),
        },
        ONE,
    ),
    "long notes": (
        {
            "labels.csv": csv([("file", "label", "note"), *((*row, "x" * 300_000) for row in table(TRAIN))]),
            **flat(TRAIN, "images/"),
        },
        ONE,
    ),
    "gzip of two parts": (
        {
            "labels.csv.gz": gzip.compress(csv(HEADER + table(TRAIN)[:5])) + gzip.compress(csv(table(TRAIN)[5:])),
            **flat(TRAIN, "images/"),
        },
        ONE,
    ),
    "gzip": ({"labels.csv.gz": gzip.compress(csv(HEADER + table(TRAIN))), **flat(TRAIN, "images/")}, ONE),
    "json rows": ({"labels.json": as_json([{"file": a, "label": b} for a, b in table(TRAIN)]), **flat(TRAIN)}, ONE),
    "json columns as pandas writes them": (
        {
            "labels.json": as_json(
                {name: dict(enumerate(values)) for name, values in (("f", stems(TRAIN)), ("label", labels_of(TRAIN)))}
            ),
            **flat(TRAIN),
        },
        ONE,
    ),
    "json of file and label": ({"a/labels.json": as_json(dict(table(TRAIN))), **flat(TRAIN, "a/images/")}, ONE),
    "coco": ({"instances.json": coco(TRAIN), **flat(TRAIN, "images/")}, ONE),
    "coco, a file a split": (
        {"train2017.json": coco(TRAIN), "val2017.json": coco(VAL), **flat({**TRAIN, **VAL}, "images/")},
        SPLIT,
    ),
    "list in plain text": ({"all.txt": csv(table(TRAIN, below="images/"), " "), **flat(TRAIN, "images/")}, ONE),
    "numbers and names": (
        {
            "a.csv": csv([("file", "label", "class_name"), *((a, str(CLASSES.index(b)), b) for a, b in table(TRAIN))]),
            **flat(TRAIN),
        },
        ONE,
    ),
    "boxes and sizes": (
        {
            "a.csv": csv(
                [("file", "width", "height", "class", "x"), *((a, "32", "30", b, "0.5") for a, b in table(TRAIN))]
            ),
            **flat(TRAIN),
        },
        ONE,
    ),
    "one hot": (
        {
            "a.csv": csv(
                [("image", *CLASSES), *((a, *(str(float(b == c)) for c in CLASSES)) for a, b in table(TRAIN))]
            ),
            **flat(TRAIN),
        },
        ONE,
    ),
    "column of splits": ({"a.csv": csv([("file", "label", "split"), *by_split]), **flat(ALL, "images/")}, THREE),
    "column is_valid": (
        {
            "a.csv": csv(
                [
                    ("file", "label", "is_valid"),
                    *((*row, "False") for row in table(TRAIN)),
                    *((*row, "True") for row in table(VAL)),
                ]
            ),
            **flat({**TRAIN, **VAL}),
        },
        SPLIT,
    ),
    "a table a split": (
        {
            "train.csv": csv(HEADER + table(TRAIN)),
            "valid.csv": csv(HEADER + table(VAL)),
            "test.csv": csv(HEADER + table(TEST)),
            **flat(ALL, "images/"),
        },
        THREE,
    ),
    "a list a split": (
        {"train.txt": csv(table(TRAIN), " "), "val.txt": csv(table(VAL), " "), **flat({**TRAIN, **VAL}, "images/")},
        SPLIT,
    ),
    "a folder a split": (
        {"labels.csv": csv(HEADER + table({**TRAIN, **VAL})), **flat(TRAIN, "train/"), **flat(VAL, "val/")},
        SPLIT,
    ),
    "a table in each split": (
        {
            "train/labels.csv": csv(HEADER + table(TRAIN)),
            "val/labels.csv": csv(HEADER + table(VAL)),
            **flat(TRAIN, "train/images/"),
            **flat(VAL, "val/images/"),
        },
        SPLIT,
    ),
    "another case and suffix": ({"a.csv": csv(HEADER + table(TRAIN, suffix=".JPEG")), **flat(TRAIN)}, ONE),
    "accents as macOS writes them": (
        {
            "a.csv": csv(HEADER + table(TRAIN, suffix="\u00fc.jpg")),
            **{name.replace(".jpg", "u\u0308.jpg"): data for name, data in flat(TRAIN).items()},
        },
        {"": {f"{stem}u\u0308": row for stem, row in TRAIN.items()}},
    ),
    "numbered parts": (
        {
            "a_metadata.csv": csv([("image_id", "dx", "age"), *((a, b, "40") for a, b in table(TRAIN, suffix=""))]),
            **{f"images_part_{n // 6}/{name}": d for n, (name, d) in enumerate(flat(TRAIN).items())},
        },
        ONE,
    ),
    "parts": (
        {
            "a_metadata.csv": csv([("image_id", "dx", "age"), *((a, b, "40") for a, b in table(TRAIN, suffix=""))]),
            **{f"part_1/{n}": d for n, d in list(flat(TRAIN).items())[:6]},
            **{f"part_1/more/{n}": d for n, d in list(flat(TRAIN).items())[6:]},
        },
        ONE,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_gives_the_rows_of_class_folders(tmp_path: Path, layout: str) -> None:
    files, like = LAYOUTS[layout]
    source = write_tree(tmp_path / "source", files)
    options = {"layout": "table"} if layout == "parts" else {}
    index = opened(source, tmp_path, **options)
    expected = opened(write_tree(tmp_path / "like", class_folders(like)), tmp_path)
    assert index.layout == "table"
    assert index.classes == CLASSES
    assert rows_of(index) == rows_of(expected)
    assert index.num_found == len(files)
    assert not index.unusable


@pytest.mark.parametrize("packing", ["tar", "the table itself"])
def test_a_table_is_read_in_an_archive_and_by_its_own_name(tmp_path: Path, packing: str) -> None:
    files, _ = LAYOUTS["above"]
    source = write_tree(tmp_path / "photos", files)
    expected = opened(source, tmp_path)
    path = make_tar(tmp_path / "photos.tar", files) if packing == "tar" else source / "labels.csv"
    index = opened(path, tmp_path)
    assert rows_of(index) == rows_of(expected)
    assert index.name == expected.name == "photos"


def kaggle_cifar10() -> Files:
    """As Kaggle hands out CIFAR-10: test images have the numbers of training images, and a sample of a submission."""
    labels = [("id", "label"), *((str(n + 1), label) for n, (label, _) in enumerate(TRAIN.values()))]
    return {
        "trainLabels.csv": csv(labels),
        "sampleSubmission.csv": csv([("id", "label"), *((str(n + 1), "cat") for n in range(20))]),
        **{f"train/{n + 1}.png": data for n, (_, data) in enumerate(TRAIN.values())},
        **{f"test/{n + 1}.png": jpeg(900 + n) for n in range(20)},
    }


def test_kaggles_cifar10_leaves_the_unlabelled_test_images_aside(tmp_path: Path) -> None:
    index = opened(write_tree(tmp_path / "cifar-10", kaggle_cifar10()), tmp_path)
    found = {key: (label, data) for each in rows_of(index).values() for key, label, data in each}
    assert found == {f"{label}/{n + 1}.png": (label, data) for n, (label, data) in enumerate(TRAIN.values())}
    assert index.ignored["images of test without labels"] == 20
    assert "trainLabels.csv: files from column 'id', labels from column 'label'" in index.notes
    assert index.num_found == len(kaggle_cifar10())


def test_a_test_table_without_labels_is_left_aside_and_said(tmp_path: Path) -> None:
    files = {
        "train.csv": csv([("image", "class"), *table(TRAIN)]),
        "test.csv": csv([("image",), *((f"{stem}.jpg",) for stem in TEST)]),
        **flat(TRAIN, "train_images/"),
        **flat(TEST, "test_images/"),
    }
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    assert sum(map(len, rows_of(index).values())) == 12
    assert "test.csv: files from column 'image', no labels; left aside" in index.notes
    assert index.ignored == {"images of test.csv, which has no labels": 6, ".csv": 1}


def test_what_a_table_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    rows = [
        *table(TRAIN),
        ("gone.jpg", "bee"),
        ("empty.jpg", ""),
        ("nan.jpg", "NaN"),
        ("both.jpg", "ant"),
        ("both.jpg", "cow"),
    ]
    files = {"a.csv": csv(HEADER + rows), **flat(TRAIN)}
    files |= {"empty.jpg": jpeg(1), "nan.jpg": jpeg(4), "both.jpg": jpeg(2), "unnamed.jpg": jpeg(3), "notes.txt": b"x"}
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    assert {(each.key, each.label, each.reason) for each in index.unusable} == {
        ("bee/gone.jpg", 1, "missing: a.csv names it"),
        ("empty.jpg", -1, "no label: a.csv has none for it"),
        ("nan.jpg", -1, "no label: a.csv has none for it"),
        ("both.jpg", -1, "two labels: 'ant', 'cow' in a.csv"),
    }
    assert index.ignored == {"images that no table names": 1, ".txt": 1}
    assert sum(map(len, rows_of(index).values())) == 12


def test_a_missing_file_is_never_taken_for_one_of_another_folder(tmp_path: Path) -> None:
    files = {f"photos/{label}s/{stem}.jpg": data for stem, (label, data) in TRAIN.items()}
    rows = [(name.removeprefix("photos/"), name.split("/")[1][:3]) for name in files]
    source = write_tree(tmp_path / "s", {"a.csv": csv([*HEADER, *rows, ("cows/im000.jpg", "cow")]), **files})
    index = opened(source / "a.csv", tmp_path)
    assert [each.key for each in index.unusable] == ["cow/cows/im000.jpg"]


def test_two_files_of_one_name_and_class_keep_their_folders(tmp_path: Path) -> None:
    files = {f"{folder}/{stem}.jpg": data for folder in ("images", "img") for stem, (_, data) in TRAIN.items()}
    rows = [(name, TRAIN[name.split("/")[1][:-4]][0]) for name in files]
    index = opened(write_tree(tmp_path / "s", {"a.csv": csv(HEADER + rows), **files}), tmp_path)
    keys = {key for each in rows_of(index).values() for key, _, _ in each}
    assert len(keys) == 24
    assert "ant/images/im000.jpg" in keys


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [(f"{n:03d}.jpg", str(n % 12)) for n in range(48)]
    files = {"a.csv": csv(HEADER + rows), **{f"{n:03d}.jpg": jpeg(n) for n in range(48)}}
    assert opened(write_tree(tmp_path / "s", files), tmp_path).classes == tuple(map(str, range(12)))


def test_class_folders_with_a_table_stay_class_folders(tmp_path: Path) -> None:
    files = {f"{label}/{stem}.jpg": data for stem, (label, data) in TRAIN.items()}
    files["meta.csv"] = csv([("file", "label"), *((name, "x" if "0." in name else "y") for name in files)])
    source = write_tree(tmp_path / "s", files)
    assert opened(source, tmp_path).layout == "folders"
    assert opened(source, tmp_path, layout="table").classes == ("x", "y")
    assert opened(source, tmp_path).notes[-1] == (
        "labels are the names of folders; meta.csv has others, in column 'label': --layout table takes them"
    )
    (source / "meta.csv").write_bytes(csv([*HEADER, *((name, name[:3]) for name in files if name.endswith(".jpg"))]))
    assert "labels are the names" not in str(opened(source, tmp_path).notes)


def test_a_tree_that_is_no_class_folders_says_that_there_is_a_table(tmp_path: Path) -> None:
    files = {f"Train/{label}/{stem}.jpg": data for stem, (label, data) in TRAIN.items()}
    files |= {f"Test/{stem}.jpg": data for stem, (_, data) in TEST.items()}
    files |= {f"Meta/{label}.jpg": jpeg(n) for n, label in enumerate(CLASSES)}
    names = [("Path", "ClassId")]
    files["Train.csv"] = csv([*names, *((f"Train/{label}/{stem}.jpg", label) for stem, (label, _) in TRAIN.items())])
    files["Test.csv"] = csv([*names, *((f"Test/{stem}.jpg", label) for stem, (label, _) in TEST.items())])
    files["Meta.csv"] = csv([*names, *((f"Meta/{label}.jpg", label) for label in CLASSES[:2])])
    source = write_tree(tmp_path / "s", files)
    with pytest.raises(SourceError, match=r"'Meta' is in none of the splits .*; or --layout table, which takes"):
        opened(source, tmp_path)
    index = opened(source, tmp_path, layout="table")
    assert {split: len(rows) for split, rows in rows_of(index).items()} == {"train": 12, "val": 6}
    assert "Meta.csv: names few files, and no split as other tables do; left aside" in index.notes


@pytest.mark.parametrize("source", ["folder", "the table itself"])
def test_zips_beside_a_table_are_read_as_kaggle_hands_them_out(tmp_path: Path, source: str) -> None:
    root = write_tree(tmp_path / "s", {"trainLabels.csv": csv([("id", "label"), *table(TRAIN, suffix="")])})
    for split, found in (("train", TRAIN), ("test", TEST)):
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for name, data in flat(found, f"{split}/").items():
                archive.writestr(name, data)
    index = opened(root if source == "folder" else root / "trainLabels.csv", tmp_path)
    assert {row for each in rows_of(index).values() for row in each} == {
        (f"{label}/{stem}.jpg", label, data) for stem, (label, data) in TRAIN.items()
    }
    assert index.ignored == {"images of test without labels": 6}


def test_the_fault_of_a_table_is_said_where_there_are_no_class_folders_either(tmp_path: Path) -> None:
    files = {"labels.csv": b"file,label\n1,2,3\n", **flat(TRAIN, "berries/")}
    with pytest.raises(SourceError, match=r"one class only .*; and as a table: labels\.csv: the table can't be read"):
        opened(write_tree(tmp_path / "s", files), tmp_path)


def test_a_table_that_cannot_be_read_beside_one_that_can_is_said(tmp_path: Path) -> None:
    files = {"a.csv": csv(HEADER + table(TRAIN)), "b.csv": b"a,b\n1,2,3\n", **flat(TRAIN)}
    index = opened(write_tree(tmp_path / "s", files), tmp_path)
    assert any(note.startswith("left aside: b.csv: the table can't be read") for note in index.notes)


def test_a_table_that_is_used_is_not_left_out(tmp_path: Path) -> None:
    index = opened(write_tree(tmp_path / "s", {"a.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN)}), tmp_path)
    assert found_lines(index)[0].startswith("found 13 files (table): 12 labelled images (")
    assert found_lines(index)[0].endswith("), 1 file with labels")
    assert not index.ignored


def test_a_row_that_does_not_fit_is_named_by_its_number(tmp_path: Path) -> None:
    content = csv([*HEADER, *table(TRAIN)]) + b"x.jpg,ant,more\n"
    with pytest.raises(SourceError, match=r"a\.csv: the table can't be read \(.*Row #14: Expected 2 columns, got 3"):
        opened(write_tree(tmp_path / "s", {"a.csv": content, **flat(TRAIN)}), tmp_path)


@pytest.mark.parametrize(
    ("name", "odd", "message"),
    [
        ("split", "", "column 'split' has 'train' and also rows without a value; write a split into each row"),
        ("Subset", "unlabeled", "column 'Subset' has 'train' and also 'unlabeled', which is no split"),
        ("set", "holdout", "column 'set' has 'train' and also 'holdout', which is no split"),
        ("is_valid", "", "column 'is_valid' has 'False' and also rows without a value"),
    ],
)
def test_rows_of_no_split_are_never_trained_on_without_a_word(
    tmp_path: Path, name: str, odd: str, message: str
) -> None:
    words = ["False"] * 9 + ["True"] * 2 if name == "is_valid" else ["train"] * 9 + ["val"] * 2
    rows = [(*row, word) for row, word in zip(table(TRAIN), [*words, odd], strict=True)]
    source = write_tree(tmp_path / "s", {"a.csv": csv([("file", "label", name), *rows]), **flat(TRAIN)})
    with pytest.raises(SourceError, match=message):
        opened(source, tmp_path)


def test_whole_numbers_of_which_one_is_missing_are_labels(tmp_path: Path) -> None:
    out = io.BytesIO()
    labels = [float(n % 3) for n in range(11)] + [float("nan")]
    pq.write_table(pa.table({"file": [f"{stem}.jpg" for stem in TRAIN], "label": labels}), out)
    index = opened(write_tree(tmp_path / "s", {"a.parquet": out.getvalue(), **flat(TRAIN)}), tmp_path)
    assert index.classes == ("0", "1", "2")
    assert [each.reason for each in index.unusable] == ["no label: a.parquet has none for it"]


def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path: Path) -> None:
    lines = [json.dumps({"file": name, "label": f"{label}\u2028"}, ensure_ascii=False) for name, label in table(TRAIN)]
    source = write_tree(tmp_path / "s", {"a.jsonl": "\n".join(lines).encode(), **flat(TRAIN)})
    assert opened(source, tmp_path).classes == CLASSES
    (source / "a.jsonl").write_text("\n".join([*lines, '{"fi']))
    with pytest.raises(SourceError, match=r"a\.jsonl: the table can't be read \(line 13 isn't JSON: "):
        opened(source, tmp_path)


def test_a_quote_that_is_never_closed_is_no_class_of_a_thousand_letters(tmp_path: Path) -> None:
    content = b'file,label\nim000.jpg,"ant\n' + csv(table(TRAIN))
    with pytest.raises(SourceError, match="one class only") as caught:
        opened(write_tree(tmp_path / "s", {"a.csv": content, **flat(TRAIN)}), tmp_path)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


def test_a_column_of_other_words_is_no_column_of_splits(tmp_path: Path) -> None:
    rows = [(*row, f"set {n % 2}") for n, row in enumerate(table(TRAIN))]
    source = write_tree(tmp_path / "s", {"a.csv": csv([("file", "label", "set"), *rows]), **flat(TRAIN)})
    assert opened(source, tmp_path).val_share == 0.1


def test_the_user_names_the_columns(tmp_path: Path) -> None:
    sizes = ("small", "big")
    rows = [(f"{stem}.jpg", sizes[n % 2], label) for n, (stem, (label, _)) in enumerate(TRAIN.items())]
    content = csv([("file", "size", "colour"), *rows])
    source = write_tree(tmp_path / "s", {"a.csv": content, **flat(TRAIN)})
    with pytest.raises(
        SourceError, match="may be in any of the columns 'size', 'colour'; choose one with --label-column"
    ):
        opened(source, tmp_path)
    assert opened(source, tmp_path, label_column="size").classes == ("big", "small")
    assert opened(source, tmp_path, label_column="colour", image_column="file").classes == CLASSES
    with pytest.raises(SourceError, match="no column 'color' among 'file', 'size', 'colour'"):
        opened(source, tmp_path, label_column="color")


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"a\.csv: the table is empty"),
    "header only": (b"file,label\n", r"a\.csv: the table has no rows"),
    "latin-1": (
        "file,label\nim000.jpg,caf\xe9\n".encode("latin-1"),
        r"a\.csv: the table is neither UTF-8 .*save it as",
    ),
    "utf-16": ("file,label\nim000.jpg,x\n".encode("utf-16-le"), r"a\.csv: the table is neither UTF-8 .*without a byte"),
    "half a character": ("file,label\nim000.jpg,x\n".encode("utf-16")[:-1], r"a\.csv: the table is neither UTF-8 "),
    "ragged": (b"file,label\nim000.jpg,x\nim001.jpg,y,z\n", r"a\.csv: .*Expected 2 columns, got 3"),
    "no names": (
        b"size,label\n3,x\n4,y\n",
        r"no column of a table names files that are there \(a\.csv has 'size', 'label'\)",
    ),
    "no labels": (
        csv([("file", "score"), *((a, "0.25") for a, _ in table(TRAIN))]),
        r"column 'file' names files, and no other",
    ),
    "one class": (csv(HEADER + [(a, "x") for a, _ in table(TRAIN)]), r"one class only \('x'\)"),
    "binary": (bytes(range(256)) * 4, r"a\.csv: "),
}

OTHERS: dict[str, tuple[dict[str, bytes], str]] = {
    "json that names classes": ({"class_indices.json": as_json({"0": "ant", "1": "bee"})}, "no class folder|one class"),
    "json of images that isn't coco": (
        {"info.json": as_json({"images": ["a.jpg"], "annotations": [["cat"]]})},
        "one class only",
    ),
    "json of annotations without numbers": (
        {"info.json": as_json({"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": [], "categories": None})},
        "one class only",
    ),
    "json that is damaged": ({"labels.json": b'[{"file": "im000.jpg",'}, "one class only"),
    "json that is deep": ({"labels.json": b"[" * 100_000}, "one class only"),
    "gzip that is cut": ({"labels.csv.gz": gzip.compress(csv(HEADER + table(TRAIN)))[:40]}, "cut off"),
    "gzip that isn't": ({"labels.csv.gz": csv(HEADER + table(TRAIN))}, r"labels\.csv\.gz: .*damaged gzip"),
    "a spreadsheet": ({"labels.xlsx": b"PK\x03\x04"}, r"labels\.xlsx isn't read: save it as a table in CSV"),
    "captions": ({f"images/{stem}.txt": b"a photo of a cat" for stem in TRAIN}, "look like captions, and a classifier"),
    "tables that contradict each other": (
        {
            "a.csv": csv(HEADER + table(TRAIN)),
            "b.csv": csv(HEADER + [(file, f"no {label}") for file, label in table(TRAIN)]),
        },
        r"no labelled image, and \S+ \(two labels: 'ant', 'no ant' in a\.csv, b\.csv\) and 11 more can't be used",
    ),
    "boxes of VOC": (
        {f"Annotations/{stem}.xml": b"<annotation/>" for stem in TRAIN},
        r"look like boxes of objects \(Pascal VOC's form\)",
    ),
    "boxes of YOLO": (
        {f"labels/{stem}.txt": b"0 0.5 0.5 1 1\n" for stem in TRAIN},
        r"boxes of objects \(YOLO's form\)",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_only_looks_like_a_table_is_one_line_with_the_remedy(tmp_path: Path, kind: str) -> None:
    files, message = OTHERS[kind]
    with pytest.raises(SourceError, match=message) as caught:
        opened(write_tree(tmp_path / "s", {**files, **flat(TRAIN, "images/")}), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    source = write_tree(tmp_path / "s", {"a.csv": content, **flat(TRAIN, "images/")})
    for path in (source, source / "a.csv"):
        with pytest.raises(SourceError, match=message) as caught:
            opened(path, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data[: len(data) // 2],
            r"labels\.parquet: the table can't be read .*; mend it or download it again",
        ),
        (lambda data: b"PAR1" + data[:20], r"labels\.parquet: the table can't be read"),
    ],
)
def test_a_damaged_parquet_table_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    files = {"labels.parquet": change(parquet(HEADER + table(TRAIN))), **flat(TRAIN)}
    with pytest.raises(SourceError, match=message):
        opened(write_tree(tmp_path / "s", files), tmp_path)


def test_files_of_one_name_in_two_folders_must_be_told_apart(tmp_path: Path) -> None:
    files = {"a.csv": csv(HEADER + table(TRAIN)), **flat(TRAIN, "images/"), **flat(TRAIN, "img/")}
    with pytest.raises(
        SourceError, match=r"a\.csv: 'im000\.jpg' names 'images/im000\.jpg' and 'img/im000\.jpg'; write"
    ):
        opened(write_tree(tmp_path / "s", files), tmp_path)
