"""Lists of splits beside class folders, as data sets are published; and label tables in encodings of spreadsheets."""

import json
from pathlib import Path

import pytest

from pipeline.ingestion.sources import Index, open_source
from pipeline.ingestion.sources.tables.read import as_utf8
from tests.support.pictures.images import jpeg, write_tree

PICTURE = jpeg(1)
Files = dict[str, bytes]


def opened(files: Files, tmp_path: Path) -> Index:
    return open_source(str(write_tree(tmp_path / "source", files)), spool=str(tmp_path / "spool"))


def keys(index: Index, split: str) -> list[str]:
    return list(index.splits[split]["key"].to_pylist())


def lines(*each: str) -> bytes:
    return "\n".join([*each, ""]).encode()


def food101() -> Files:
    """Food-101: names without suffix, as text and as JSON; beside them the names of the classes, and a licence."""
    dishes = {"apple_pie": ("1005649", "1011328", "101251"), "waffles": ("1009160", "1010321", "1015443")}
    names = {dish: [f"{dish}/{each}" for each in each_of] for dish, each_of in dishes.items()}
    train, test = ({dish: some[part] for dish, some in names.items()} for part in (slice(0, 2), slice(2, None)))
    files = {f"food-101/images/{each}.jpg": PICTURE for some in names.values() for each in some}
    for split, chosen in (("train", train), ("test", test)):
        files[f"food-101/meta/{split}.json"] = json.dumps(chosen).encode()
        files[f"food-101/meta/{split}.txt"] = lines(*(each for some in chosen.values() for each in some))
    files |= {"food-101/meta/classes.txt": lines(*dishes), "food-101/meta/labels.txt": lines("Apple pie", "Waffles")}
    return files | {"food-101/README.txt": b"Food-101\n", "food-101/license_agreement.txt": b"Terms\n"}


def cub() -> Files:
    """CUB-200-2011: images have numbers, which say their class and whether they are of train."""
    birds = {"001.Black_footed_Albatross": ("0046_18", "0009_34"), "002.Laysan_Albatross": ("0002_1027", "0003_1033")}
    names = [f"{bird}/{bird[4:]}_{each}.jpg" for bird, some in birds.items() for each in some]
    root = "CUB_200_2011"
    files = {f"{root}/images/{name}": PICTURE for name in names}
    files[f"{root}/images.txt"] = lines(*(f"{n} {name}" for n, name in enumerate(names, 1)))
    files[f"{root}/train_test_split.txt"] = lines("1 0", "2 1", "3 0", "4 1")
    files[f"{root}/image_class_labels.txt"] = lines("1 1", "2 1", "3 2", "4 2")
    files[f"{root}/classes.txt"] = lines(*(f"{n} {bird}" for n, bird in enumerate(birds, 1)))
    files[f"{root}/bounding_boxes.txt"] = lines("1 60.0 27.0 325.0 304.0", "2 139.0 30.0 153.0 264.0")
    return files | {f"{root}/README": b"CUB\n", f"{root}/parts/parts.txt": lines("1 back", "2 beak")}


def pets() -> Files:
    """Oxford-IIIT Pet: images in one folder, labels in their names; masks beside the lists."""
    names = [f"{kind}_{n}" for kind in ("Abyssinian", "american_bulldog") for n in (1, 10, 100)]
    files = {f"images/{name}.jpg": PICTURE for name in names}
    said = [f"{name} {number // 3 + 1} 1 {number // 3 + 1}" for number, name in enumerate(names)]
    files["annotations/list.txt"] = lines("#Image CLASS-ID SPECIES BREED ID", *said)
    files["annotations/trainval.txt"] = lines(*(each for n, each in enumerate(said) if n % 3))
    files["annotations/test.txt"] = lines(*(each for n, each in enumerate(said) if not n % 3))
    files |= {f"annotations/trimaps/{name}.png": PICTURE for name in names}
    return files | {"annotations/README": b"Pets\n", "annotations/xmls/Abyssinian_1.xml": b"<annotation/>"}


def indoor67() -> Files:
    """MIT Indoor-67: two lists beside `Images`, and images that neither names."""
    files = {f"Images/{room}/int{n}.jpg": PICTURE for room in ("bakery", "attic") for n in (474, 475, 476)}
    files["TrainImages.txt"] = b"bakery/int474.jpg\r\nattic/int474.jpg\r\n"
    return files | {"TestImages.txt": b"bakery/int475.jpg\r\nattic/int475.jpg\r\n"}


PUBLISHED = {
    "Food-101": (
        food101(),
        ("apple_pie", "waffles"),
        [
            f"train/{each}.jpg"
            for each in ("apple_pie/1005649", "apple_pie/1011328", "waffles/1009160", "waffles/1010321")
        ],
        ["test/apple_pie/101251.jpg", "test/waffles/1015443.jpg"],
        "splits by food-101/meta/test.txt, food-101/meta/train.txt: 2 test, 4 train",
    ),
    "CUB-200-2011": (
        cub(),
        ("001.Black_footed_Albatross", "002.Laysan_Albatross"),
        [
            "train/001.Black_footed_Albatross/Black_footed_Albatross_0009_34.jpg",
            "train/002.Laysan_Albatross/Laysan_Albatross_0003_1033.jpg",
        ],
        [
            "test/001.Black_footed_Albatross/Black_footed_Albatross_0046_18.jpg",
            "test/002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
        ],
        "splits by CUB_200_2011/images.txt, CUB_200_2011/train_test_split.txt: 2 train, 2 test",
    ),
    "Oxford-IIIT Pet": (
        pets(),
        ("Abyssinian", "american_bulldog"),
        [f"train/{kind}_{n}.jpg" for kind in ("Abyssinian", "american_bulldog") for n in (10, 100)],
        ["test/Abyssinian_1.jpg", "test/american_bulldog_1.jpg"],
        "splits by annotations/test.txt, annotations/trainval.txt: 2 test, 4 train",
    ),
    "MIT Indoor-67": (
        indoor67(),
        ("attic", "bakery"),
        ["train/attic/int474.jpg", "train/bakery/int474.jpg"],
        ["test/attic/int475.jpg", "test/bakery/int475.jpg"],
        "splits by TestImages.txt, TrainImages.txt: 2 test, 2 train",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_lists_of_a_published_data_set_make_its_splits(name: str, tmp_path: Path) -> None:
    files, classes, train, test, note = PUBLISHED[name]
    index = opened(files, tmp_path)
    assert index.classes == classes
    assert keys(index, "train") == sorted(train)
    assert keys(index, "val") == sorted(test)  # test serves as val
    assert note in index.notes
    assert index.val_share == 0
    assert index.num_found == len(files)
    if name == "MIT Indoor-67":
        assert index.ignored["images that no list of a split names"] == 2


def test_the_same_images_in_folders_of_splits_give_the_same_rows(tmp_path: Path) -> None:
    files, _, train, test, _ = PUBLISHED["Food-101"]
    by_lists = opened(files, tmp_path)
    by_folders = opened(dict.fromkeys((*train, *test), PICTURE), tmp_path / "other")
    assert {split: keys(by_lists, split) for split in by_lists.splits} == {
        split: keys(by_folders, split) for split in by_folders.splits
    }


def test_json_alone_is_enough(tmp_path: Path) -> None:
    files = {name: data for name, data in food101().items() if not name.endswith(("train.txt", "test.txt"))}
    assert keys(opened(files, tmp_path), "val") == ["test/apple_pie/101251.jpg", "test/waffles/1015443.jpg"]


UNCLEAR: dict[str, tuple[Files, str]] = {
    "one list": ({"meta/test.txt": None}, "meta/train.txt: images of train alone; left aside"),  # type: ignore[dict-item]
    "in both": ({"meta/test.txt": lines("apple_pie/1005649", "waffles/1015443")}, "an image is in two of them"),
    "folds": ({"meta/train2.txt": lines("apple_pie/101251", "waffles/1015443")}, "several lists of one split"),
    "prose": ({"meta/test.txt": lines("these are", "the test images")}, "images of train alone"),
    "missing": ({"meta/test.txt": lines("apple_pie/7", "waffles/1015443")}, "images of train alone"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear_lists_are_left_aside_and_said(name: str, tmp_path: Path) -> None:
    changes, note = UNCLEAR[name]
    files = {each: data for each, data in food101().items() if not each.endswith(".json")}
    files |= {f"food-101/{each}": data for each, data in changes.items()}
    index = opened({each: data for each, data in files.items() if data is not None}, tmp_path)
    assert any(note in each for each in index.notes)
    assert index.val_share == 0.1  # held out, as without lists
    assert index.num_rows == 6


def test_names_may_hold_spaces(tmp_path: Path) -> None:
    files = {f"{kind}/a {n}.jpg": PICTURE for kind in ("ant", "bee") for n in (1, 2)}
    files |= {"train.txt": lines("ant/a 1.jpg", "bee/a 1.jpg"), "val.txt": lines("ant/a 2.jpg", "bee/a 2.jpg")}
    assert keys(opened(files, tmp_path), "val") == ["val/ant/a 2.jpg", "val/bee/a 2.jpg"]


def test_a_few_images_that_were_deleted_do_not_matter(tmp_path: Path) -> None:
    names = [f"{kind}/{n}" for kind in ("ant", "bee") for n in range(30)]
    files = {f"images/{name}.jpg": PICTURE for name in names[1:]}
    files |= {"train.txt": lines(*names[:40]), "test.txt": lines(*names[40:])}
    index = opened(files, tmp_path)
    assert (len(keys(index, "train")), len(keys(index, "val"))) == (39, 20)
    assert "1 names of these lists aren't there" in index.notes


# --- encodings ---------------------------------------------------------------------------------------------------

TEXT = "file;label\r\nä.jpg;caf\xe9\r\nb.jpg;tea\r\nc.jpg;caf\xe9\r\nd.jpg;tea\r\n"
MARKED = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32": b"",
}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("kind", ["csv", "txt", "json", "jsonl"])
def test_a_table_is_read_in_each_encoding_of_spreadsheets(kind: str, encoding: str, tmp_path: Path) -> None:
    rows = [line.split(";") for line in TEXT.split("\r\n")[1:-1]]
    text = {
        "csv": TEXT,
        "txt": "\n".join(" ".join(row) for row in rows),
        "json": json.dumps([{"file": file, "label": label} for file, label in rows], ensure_ascii=False),
        "jsonl": "\n".join(json.dumps({"file": file, "label": label}, ensure_ascii=False) for file, label in rows),
    }[kind]
    files = {file: PICTURE for file, _ in rows}
    index = opened({**files, f"labels.{kind}": MARKED[encoding] + text.encode(encoding)}, tmp_path)
    assert index.classes == ("caf\xe9", "tea")
    assert index.num_rows == 4


def test_text_without_a_mark_is_utf8_or_refused() -> None:
    assert as_utf8("é".encode()) == "é".encode()
    for encoding in ("cp1252", "utf-16-le", "utf-16-be"):
        with pytest.raises(UnicodeDecodeError):
            as_utf8("été".encode(encoding))
