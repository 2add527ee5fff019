"""Splits and classes of folder trees: a table of shapes, with what each must be read as or the line that refuses it."""

from collections import Counter

import pytest

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.recognise.split_words import split_of, splits_among
from pipeline.ingestion.sources.recognise.trees import Reading, read_tree


def read(images: str, others: str = "", class_level: str = "auto") -> Reading:
    """Returns the reading of folders, each with three images. others: FOLDER:SUFFIX, or FOLDER for an empty folder."""
    found = {}
    for each in others.split():
        folder, _, suffix = each.partition(":")
        found["" if folder == "." else folder] = Counter({suffix: 2}) if suffix else Counter()
    return read_tree({"" if each == "." else each: 3 for each in images.split()}, found, "photos", class_level)


def classes(reading: Reading) -> dict[str, str]:
    """Returns {split: "CLASS CLASS"}."""
    found: dict[str, set[str]] = {}
    for meaning in reading.meanings.values():
        found.setdefault(meaning.split, set()).add(meaning.class_name)
    return {split: " ".join(sorted(names)) for split, names in found.items()}


BOTH = {"train": "cat dog", "val": "cat dog"}
TESTED = {"train": "cat dog", "test": "cat dog"}
TREES = [
    # classes alone
    ("cat dog", {"": "cat dog"}),
    ("photos/cat photos/dog", {"": "cat dog"}),
    ("a/b/c/cat a/b/c/dog", {"": "cat dog"}),
    # splits, at any depth below common folders
    ("train/cat train/dog val/cat val/dog", BOTH),
    ("kaggle/train/cat kaggle/train/dog kaggle/val/cat kaggle/val/dog", BOTH),
    ("a/b/train/cat a/b/train/dog a/b/val/cat a/b/val/dog", BOTH),
    ("train/cat train/dog", {"train": "cat dog"}),
    ("a/train/cat a/train/dog", {"train": "cat dog"}),
    ("test/cat test/dog", {"test": "cat dog"}),
    ("train/cat train/dog val/cat", {"train": "cat dog", "val": "cat"}),
    ("train/cat train/dog val/cat val/dog test/cat test/dog", {**BOTH, "test": "cat dog"}),
    # names of splits
    ("Training_Set/cat Training_Set/dog Test_Set/cat Test_Set/dog", TESTED),
    ("TRAIN/cat TRAIN/dog Valid/cat Valid/dog", BOTH),
    ("train2017/cat train2017/dog val2017/cat val2017/dog", BOTH),
    ("images_train/cat images_train/dog images_dev/cat images_dev/dog", BOTH),
    ("TrainingData/cat TrainingData/dog EvaluationData/cat EvaluationData/dog", BOTH),
    ("trainset/cat trainset/dog valset/cat valset/dog", BOTH),
    ("tr/cat tr/dog te/cat te/dog", TESTED),
    ("pets_train/cat pets_train/dog pets_test/cat pets_test/dog", TESTED),
    ("trn/cat trn/dog dev/cat dev/dog", BOTH),
    ("train1/cat train1/dog train2/cat val/dog", {"train": "cat dog", "val": "dog"}),
    ("training_set/training_set/cat training_set/training_set/dog test_set/test_set/cat test_set/test_set/dog", TESTED),
    ("Training/cat Training/dog PublicTest/cat PrivateTest/dog", TESTED),
    # folders between split and class, and below the class
    ("train/images/cat train/images/dog val/images/cat val/images/dog", BOTH),
    ("train/images/cat train/images/dog val/images/cat", {"train": "cat dog", "val": "cat"}),
    ("images/train/cat images/train/dog images/val/cat images/val/dog", BOTH),
    ("train/cat/images train/dog/images val/cat/images val/dog/images", BOTH),
    ("cat/cat dog/dog", {"": "cat dog"}),
    ("cat cat/more dog", {"": "cat dog"}),
    ("train/cat/a train/cat/b train/dog/c val/cat val/dog", BOTH),
    # classes first
    ("cat/train cat/test dog/train dog/test", TESTED),
    # classes with names of splits
    ("plane train car", {"": "car plane train"}),
    ("train/plane train/train val/plane val/train", {"train": "plane train", "val": "plane train"}),
    ("train/test train/car test/test test/car", {"train": "car test", "test": "car test"}),
    ("valid invalid", {"": "invalid valid"}),
    ("test control", {"": "control test"}),
    ("train_station bus_station", {"": "bus_station train_station"}),
    ("bullet_train steam_train car", {"": "bullet_train car steam_train"}),
    ("tr de fr", {"": "de fr tr"}),
]


@pytest.mark.parametrize(("images", "expected"), TREES)
def test_a_tree_is_read_as_a_person_reads_it(images: str, expected: dict[str, str]) -> None:
    reading = read(images)
    assert classes(reading) == expected
    assert not reading.aside
    assert len(reading.meanings) == len(images.split())


@pytest.mark.parametrize(
    ("images", "aside"),
    [
        ("train/cat train/dog val/cat val/dog test", {"test": 3}),
        ("train/cat train/dog val/cat val/dog test/images", {"test": 3}),
        ("a/train/cat a/train/dog a/val/cat a/val/dog a/test1", {"test1": 3}),
        ("seg_train/sea seg_train/ice seg_test/sea seg_test/ice seg_pred", {"seg_pred": 3}),
        ("train/cat train/dog val/cat val/dog unlabeled", {"unlabeled": 3}),
        ("train/cat train/dog val", {"val": 3}),
        ("cat dog test", {"test": 3}),
    ],
)
def test_images_without_class_folders_are_left_aside_and_counted(images: str, aside: dict[str, int]) -> None:
    reading = read(images)
    assert reading.aside == {f"images of {name}/ without class folders": count for name, count in aside.items()}
    assert len(reading.meanings) == len(images.split()) - len(aside)


def test_a_few_images_beside_class_folders_are_left_aside() -> None:
    counts = {"": 1, "train": 2, "train/cat": 20, "train/dog": 20, "val/cat": 5, "val/dog": 5}
    reading = read_tree(counts, {}, "photos")
    assert reading.aside == {"images of the source beside its folders": 1, "images of train beside its folders": 2}
    assert classes(reading) == {"train": "cat dog", "val": "cat dog"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("Training_Set/C Training_Set/D Other/C Other/D", r"'Other' is in none of the splits \['Training_Set'\]"),
        ("train/cat train/dog val/cat val/dog extra", "'extra' is in none of the splits"),
        ("dog/day cat/night", "'cat', 'dog' lie above 'day', 'night', so either may be the classes; .*folders-first"),
        ("dog/day dog/night cat/day cat/night", "'cat', 'dog' lie above 'day', 'night'"),
        ("fold1/cat fold1/dog fold2/cat fold2/dog", "'fold1', 'fold2' lie above 'cat', 'dog'"),
        ("cat cat/more dog/x", "'cat', 'dog' lie above 'more', 'x'"),
        ("cat cat/dog dog", "'cat' lies above 'dog'"),
        ("a/train/cat a/val/cat b/train/dog b/val/dog", r"'a', 'b' are no split.* give one of them \(photos/a\)"),
        ("cat/train cat/test dog", "'cat' is no split and no class, but lies above 'test', 'train'"),
        ("train test", "'test', 'train' hold 6 images and no class folder"),
        ("train/images test/images", "'test', 'train' hold 6 images and no class folder"),
        ("train val/cat val/dog", "train/ holds 3 images and no class folder"),
        ("cat dog train test", "'test', 'train' hold no class folders and lie beside 'cat', 'dog'"),
        ("train/cat train/dog train", "3 images of train aren't in a class folder"),
        ("train/cat train/dog val/cat .", "3 images of the source aren't in a class folder"),
        ("cat dog .", "3 images of the source aren't in a class folder"),
        (".", "3 images and no class folder"),
    ],
)  # fmt: skip
def test_a_tree_that_can_be_read_in_several_ways_is_refused_by_the_names_of_its_folders(
    images: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(images)
    assert "\n" not in str(caught.value)


def test_the_user_may_say_which_folder_is_the_class() -> None:
    images = "dog/day dog/night cat/day"
    assert classes(read(images, class_level="first")) == {"": "cat dog"}
    assert classes(read(images, class_level="last")) == {"": "day night"}


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        ("cat dog", "bee:.mp4", r"class folder 'bee' holds 2 files and no image \(2 x \.mp4\)"),
        ("cat dog", "bee:.txt", "class folder 'bee' holds 2 files and no image"),
        ("cat dog", "bee", "class folder 'bee' is empty"),
        ("a/cat a/dog", "a/bee/x:.mp4", "class folder 'a/bee' holds 2 files"),
        ("train/cat train/dog val/cat val/dog", "train/bee:.raw", "class folder 'train/bee' holds 2 files"),
        ("train/cat train/dog val/dog", "val/cat:.txt", "class folder 'val/cat' holds 2 files"),
        ("train/cat train/dog", "val/cat:.mp4 val/dog:.mp4", "split 'val' holds 4 files and no image"),
        ("train/cat train/dog val/cat val/dog", "test/cat:.mp4", "split 'test' holds 2 files and no image"),
    ],
)
def test_a_class_or_split_does_not_disappear_without_a_word(images: str, others: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(images, others)


@pytest.mark.parametrize(
    ("images", "others"),
    [
        ("cat dog", "annotations:.xml .:.txt"),
        ("cat dog", "cat/notes:.txt"),
        ("data/cat data/dog", "docs:.pdf tools:.exe"),
        ("train/cat train/dog val/dog", "val/cat labels:.txt"),
        ("train/cat train/dog", "test:.csv"),
    ],
)
def test_folders_that_are_no_classes_disturb_nobody(images: str, others: str) -> None:
    assert set(" ".join(classes(read(images, others)).values()).split()) == {"cat", "dog"}


def test_keys_are_those_of_the_tree_without_what_all_share() -> None:
    keys = {
        folder: meaning.key
        for folder, meaning in read("a/Train/x/cat a/Train/x/dog/more a/Train/x/dog a/val/cat").meanings.items()
    }
    assert keys == {
        "a/Train/x/cat": "Train/cat",
        "a/Train/x/dog": "Train/dog",
        "a/Train/x/dog/more": "Train/dog/more",
        "a/val/cat": "val/cat",
    }
    assert {meaning.key for meaning in read("b/train/cat b/train/dog").meanings.values()} == {"cat", "dog"}
    assert {meaning.key for meaning in read("cat/train cat/test dog/train").meanings.values()} == {
        "train/cat", "test/cat", "train/dog",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("trainval", "train"), ("train-images-128px", "train"),
        ("imgTrain", "train"), ("validation_set", "val"), ("eval", "val"), ("DEV", "val"), ("test-dev", "test"),
        ("testdata", "test"), ("latest", None), ("contest", None), ("trains", None), ("train_test_split", None),
        ("tr", None), ("seg_train", None), ("unlabeled", None), ("cats", None), ("2017", None), ("", None),
    ],
)  # fmt: skip
def test_the_words_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_other_words_need_a_second_split_with_the_same_words() -> None:
    assert splits_among(["pet_train", "pet_test", "bullet_train"]) == {"pet_train": "train", "pet_test": "test"}
    assert splits_among(["pet_train"]) == {}
