"""Labels in the names of files: which names are labels, which trees make it plain, and that nothing is lost."""

import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import SourceError
from pipeline.dataset.parquet import read_table
from pipeline.ingestion.found import found_lines
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.ingestion.sources.recognise.named_labels import label_in, read_names
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tar, write_tree


@pytest.mark.parametrize(
    ("name", "label"),
    [
        # as people and public data sets write them
        ("cat.0.jpg", "cat"), ("train/dog.12499.jpg", "dog"), ("Abyssinian_1.jpg", "Abyssinian"), ("cat-3.JPEG", "cat"),
        ("american_bulldog_100.jpg", "american_bulldog"), ("St.Bernard_7.png", "St.Bernard"), ("cat (1).jpg", "cat"),
        ("red fox 12.webp", "red fox"), ("n01440764_10026.JPEG", "n01440764"), ("V_3.png", "V"), ("dog.12", "dog"),
        ("Löwe_1.jpg", "Löwe"), ("no_mask_4.jpg", "no_mask"), ("cat__007.gif", "cat"), ("new_york_2.jpg", "new_york"),
        # as cameras and programs do
        ("IMG_0012.jpg", None), ("IMG_20230101_123456.jpg", None), ("DSC_0001.JPG", None), ("DSC00012.JPG", None),
        ("PXL_20230101_1.jpg", None), ("20230101_123456.jpg", None), ("P1010012.JPG", None), ("frame-7.png", None),
        ("Screenshot 2023-01-01 at 10.12.13.png", None), ("WhatsApp Image 2023-01-01 at 10.12.13 (1).jpeg", None),
        ("image_1.jpg", None), ("photo1_2.jpg", None), ("GOPR-12.jpg", None), ("unnamed (3).jpg", None),
        # hashes, numbers, splits, two numbers
        ("a1b2c3d4_1.jpg", None), ("3_12.png", None), ("0042.jpg", None), ("train_12.jpg", None), ("val.3.jpg", None),
        ("cat_1_2.jpg", None), ("Black_Footed_Albatross_0001_796111.jpg", None), ("cat.1 (2).jpg", None),
        ("ILSVRC2012_val_00000001.JPEG", None), ("cat.jpg", None), ("cat12.jpg", None), ("_12.jpg", None),
    ],
)  # fmt: skip
def test_the_label_in_a_name(name: str, label: str | None) -> None:
    assert label_in(name) == label


def named(*starts: str, each: int = 4, folder: str = "", suffix: str = ".jpg") -> list[str]:
    """Returns `each` names for each beginning."""
    return [f"{folder}{start}{number}{suffix}" for start in starts for number in range(each)]


def tree(root: Path, names: list[str]) -> Path:
    return write_tree(root, {name: jpeg(seed) for seed, name in enumerate(names)})


def opened(path: Path, **options: object) -> Index:
    return open_source(Source(str(path), **options), spool=f"{path}-spool")


@pytest.mark.parametrize(
    ("names", "classes", "splits", "aside"),
    [
        (named("cat.", "dog."), "cat dog", {"train", "val"}, {}),
        (named("cat.", "dog.", folder="a/b/"), "cat dog", {"train", "val"}, {}),
        (named("cat.", "dog.", folder="train/"), "cat dog", {"train", "val"}, {}),
        (named("cat.", "dog.", folder="dogs-vs-cats/train/"), "cat dog", {"train", "val"}, {}),
        (named("cat.", "dog.", folder="train/images/"), "cat dog", {"train", "val"}, {}),
        (named("cat_", "dog-", folder="tr/") + named("cat_", "dog-", folder="val/"), "cat dog", {"train", "val"}, {}),
        (named("cat.", "dog.", folder="Train/") + named("cat.", folder="Test/"), "cat dog", {"train", "val"}, {}),
        (
            named("cat.", "dog.", folder="train/") + named("", folder="test1/"),
            "cat dog", {"train", "val"}, {"images of test1 without labels in their names": 4},
        ),
        (
            named("cat.", "dog.", folder="train/") + named("cat.", "dog.", folder="val/") + named("x", folder="test/"),
            "cat dog", {"train", "val"}, {"images of test without labels in their names": 4},
        ),
        (
            named("Sphynx_", "boxer_", folder="images/") + named("Sphynx_", folder="annotations/trimaps/"),
            "Sphynx boxer", {"train", "val"}, {"images of annotations/, which describe others": 4},
        ),
        (
            [*named("cat.", "dog.", each=10), "cover.jpg"],
            "cat dog", {"train", "val"}, {"images of the source without labels in their names": 1},
        ),
        (
            [*named("cat.", "dog.", each=10, folder="train/"), "cover.jpg"],
            "cat dog", {"train", "val"}, {"images of the source beside its folders": 1},
        ),
    ],
)  # fmt: skip
def test_a_plain_tree_of_named_images_is_read(
    tmp_path: Path, names: list[str], classes: str, splits: set[str], aside: dict[str, int]
) -> None:
    index = opened(tree(tmp_path / "photos", names))
    assert index.layout == "names"
    assert " ".join(index.classes) == classes
    assert set(index.splits) == splits
    assert index.ignored == aside
    assert index.num_found == len(names)
    assert index.notes[0].startswith("labels are the beginnings of the files' names: ")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (named("IMG_", "DSC_"), "8 images and no class folder; expected SPLIT/CLASS/NAME or CLASS/NAME, or names"),
        (named("cat."), "4 images and no class folder"),
        (named("cat", "dog"), "8 images and no class folder"),
        (named("3_", "4_"), "8 images and no class folder"),
        ([*named("cat.", "dog."), "owl.1.jpg"], r"labels in names such as 'cat\.0\.jpg', 'owl' has one image only"),
        (named("cat.", "dog.", "Cat."), "the labels 'Cat' and 'cat' in names differ by their case only"),
        ([*named("cat.", "dog."), "a.jpg", "b.jpg"], "10 images and no class folder"),
        (named("a1b2c3d4_", "ffee0011_"), "8 images and no class folder"),
        (named("", folder="train/") + named("cat.", "dog.", folder="val/"), "no class folder"),
        (named("cat.", "dog.", folder="train/") + named("cat.", "dog."), "aren't in a class folder|no class folder"),
    ],
)  # fmt: skip
def test_names_that_may_be_anything_are_refused_in_one_line(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        opened(tree(tmp_path / "photos", names))
    assert "\n" not in str(caught.value)


def test_class_folders_and_tables_come_before_names(tmp_path: Path) -> None:
    folders = tree(tmp_path / "folders", named("cat.", "dog.", folder="wild/") + named("cat.", "dog.", folder="tame/"))
    assert opened(folders).classes == ("tame", "wild")
    names = named("cat.", "dog.")
    table = tree(tmp_path / "table", names)
    lines = [f"{name},{('red', 'blue')[number % 2]}\n" for number, name in enumerate(names)]
    (table / "labels.csv").write_text("file,label\n" + "".join(lines))
    assert opened(table).classes == ("blue", "red")
    other = tree(tmp_path / "other", names)
    (other / "prices.csv").write_text("thing,price\na,1\nb,2\n")
    (other / "sampleSubmission.csv").write_text("id,label\n1,0\n")
    assert opened(other).classes == ("cat", "dog")
    assert opened(other).ignored == {".csv": 2}


def test_the_user_may_say_that_names_are_labels(tmp_path: Path) -> None:
    photos = tree(tmp_path / "photos", [*named("3_", "4_"), "5_1.jpg"])
    assert opened(photos, layout="names").classes == ("3", "4", "5")
    with pytest.raises(SourceError, match="is not of the layout names"):
        opened(tree(tmp_path / "x", ["a/1.jpg", "b/2.jpg"]), layout="names")


def test_masks_beside_images_are_no_class(tmp_path: Path) -> None:
    names = named("", folder="images/cat/") + named("", folder="images/dog/") + named("", folder="masks/cat/")
    index = opened(tree(tmp_path / "photos", names))
    assert (index.classes, index.num_rows) == (("cat", "dog"), 8)
    assert index.ignored == {"images of masks/, which describe others": 4}
    with pytest.raises(SourceError, match="one class only"):
        opened(tree(tmp_path / "flat", named("", folder="images/") + named("", folder="masks/")))
    faces = opened(tree(tmp_path / "faces", named("", folder="mask/") + named("", folder="no_mask/")))
    assert faces.classes == ("mask", "no_mask")


def test_archives_of_named_images_are_read_as_kaggle_hands_them_out(tmp_path: Path) -> None:
    images = {name: jpeg(seed) for seed, name in enumerate(named("cat.", "dog.", folder="train/"))}
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as train:
        for name, data in images.items():
            train.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "test1.zip", "w") as test:
        test.writestr("test1/1.jpg", jpeg(99))
    expected = opened(write_tree(tmp_path / "tree", images)).splits
    assert opened(tmp_path / "train.zip").splits["val"]["key"] == expected["val"]["key"]
    assert opened(make_tar(tmp_path / "a.tar", images)).splits["train"]["key"] == expected["train"]["key"]
    with zipfile.ZipFile(tmp_path / "dogs-vs-cats.zip", "w") as both:
        both.write(tmp_path / "train.zip", "train.zip")
        both.write(tmp_path / "test1.zip", "test1.zip")
        both.writestr("sampleSubmission.csv", "id,label\n1,0\n")
    index = opened(tmp_path / "dogs-vs-cats.zip")
    assert index.layout == "names"
    assert {split: table["key"] for split, table in index.splits.items()} == {
        split: table["key"] for split, table in expected.items()
    }
    assert index.ignored == {"images of test1 without labels in their names": 1, ".csv": 1}


def test_what_was_found_is_written_refused_or_left_out(tmp_path: Path) -> None:
    photos = tree(tmp_path / "photos", named("cat.", "dog.", folder="train/") + named("", folder="test/"))
    (photos / "train" / "cat.9.jpg").symlink_to("/nowhere")
    (photos / "train" / "more").symlink_to("/nowhere")
    (photos / "train" / "dog.9.jpg").write_bytes(b"no image")
    (photos / "train" / "notes.txt").write_bytes(b"x")
    index = opened(photos)
    manifest = ingest_here(index, str(tmp_path / "out"))
    refused = read_table(files.join(str(tmp_path / "out"), "quarantine.parquet")).to_pylist()
    assert {each["key"]: each["reason"].split(":")[0] for each in refused} == {
        "cat.9.jpg": "dangling link", "dog.9.jpg": "no image", "train/more": "dangling link",
    }  # fmt: skip
    entries = sum(len(names) for _, _, names in os.walk(photos))
    assert manifest.rows + len(refused) + index.num_ignored == entries == 16
    assert found_lines(index)[2].startswith("labels are the beginnings of the files' names: cat.0.jpg is of class cat")
    assert manifest.val_share == 0.1


LABELS = st.text(st.characters(whitelist_categories=("Lu", "Ll")), min_size=1, max_size=6)
NAMES = st.one_of(
    st.tuples(LABELS, st.sampled_from([".", "_", "-", " "]), st.integers(0, 99)).map(
        lambda x: f"{x[0]}{x[1]}{x[2]}.jpg"
    ),
    st.sampled_from(["IMG_1.jpg", "x.jpg", "masks/1.png", "test/1.jpg"]),
    st.sampled_from(["train/cat.1.jpg", "train/cat.2.jpg", "val/dog_1.jpg", "images/a_1.jpg"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, unique=True, max_size=40), st.booleans())
def test_every_image_has_a_label_or_is_left_aside_once(names: list[str], plain: bool) -> None:
    found = read_names(sorted(names), plain=plain)
    if found is None:
        return
    rows = [*found.labels, *(row for aside in found.aside.values() for row in aside)]
    assert Counter(rows) == Counter(range(len(names)))
    assert found.splits.keys() == found.keys.keys() == found.labels.keys()
    assert len(set(found.keys.values())) == len(found.keys)
    counts = Counter(found.labels.values())
    assert len(counts) > 1
    if plain and not found.problem:
        assert min(counts.values()) > 1


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(LABELS, st.integers(2, 5), min_size=2, max_size=6), st.sampled_from(["", "train/", "a/b/"]))
def test_labels_and_counts_come_back_from_names(classes: dict[str, int], folder: str) -> None:
    known = {label: count for label, count in classes.items() if label_in(f"{label}_1.jpg")}
    names = sorted(f"{folder}{label}_{number}.jpg" for label, count in known.items() for number in range(count))
    found = read_names(names)
    if len(known) < 2:
        assert found is None
        return
    assert found is not None
    alike = len({label.casefold() for label in known}) < len(known)
    assert bool(found.problem) == alike
    assert Counter(found.labels.values()) == known
