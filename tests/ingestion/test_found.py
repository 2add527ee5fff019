"""Every file of a source is labelled, in quarantine, or left out and counted: nothing is lost between the listing and
the data set."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core.errors import DatasetError, PipelineError, SourceError
from pipeline.core.keyed_random import Stream
from pipeline.dataset.parquet import read_provenance, read_table
from pipeline.ingestion.found import found_lines
from pipeline.ingestion.sources import Index, Source, open_source
from pipeline.ingestion.sources.index import below_share
from pipeline.ingestion.sources.recognise.contents import looks_like_image
from pipeline.ingestion.sources.recognise.file_kinds import left_behind
from pipeline.storage import files
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tar, make_tree, picture, sample_bytes, tree_files

IMAGE = jpeg(1)


def opened(path: Path, for_evaluation: bool = False) -> Index:
    return open_source(Source(str(path), for_evaluation=for_evaluation), spool="")


def num_entries(root: Path) -> int:
    """Returns the files below a folder as the system counts them, whatever they are."""
    return sum(len(names) for _, _, names in os.walk(os.fsencode(root)))


def odd_tree(root: Path) -> Path:
    """Writes a tree with one of each oddity, and returns it."""
    tree = make_tree(root, per_class=4)
    (tree / "train" / "ant" / "gone.jpg").symlink_to("/nowhere/at/all.jpg")
    (tree / "train" / "ant" / "same.jpg").symlink_to("000.jpg")
    (tree / "train" / "ant" / "above").symlink_to("..")
    os.mkfifo(tree / "train" / "bee" / "pipe.jpg")
    (tree / "train" / "bee" / "no_suffix").write_bytes(IMAGE)
    (tree / "train" / "bee" / "photo.JPG.1").write_bytes(jpeg(2))
    (tree / "train" / "bee" / "notes").write_bytes(b"hello")
    (tree / "train" / "bee" / "empty").write_bytes(b"")
    (tree / "train" / "bee" / "cut.jpg").write_bytes(IMAGE[:200])
    (tree / "val" / "cow" / "Thumbs.db").write_bytes(b"x")
    (tree / "val" / "cow" / "._000.jpg").write_bytes(b"x")
    (tree / "val" / "labels.csv").write_bytes(b"x")
    for hidden in ("train/.ipynb_checkpoints", "__MACOSX/train/ant", "train/ant/@eaDir", ".git"):
        (tree / hidden).mkdir(parents=True)
        (tree / hidden / "000.jpg").write_bytes(IMAGE)
    (tree / "test").mkdir()
    (tree / "test" / "1.jpg").write_bytes(IMAGE)
    with open(os.fsencode(tree / "train" / "cow") + b"/caf\xe9 \xff.jpg", "wb") as file:
        file.write(jpeg(3))
    return tree


def test_odd_files_are_kept_quarantined_or_counted(tmp_path: Path) -> None:
    index = opened(odd_tree(tmp_path / "t"))
    assert index.classes == ("ant", "bee", "cow")
    assert {split: table.num_rows for split, table in index.splits.items()} == {"train": 12 + 5, "val": 12}
    train = index.splits["train"]["key"].to_pylist()
    assert {"train/bee/no_suffix", "train/bee/photo.JPG.1", "train/cow/caf\\xe9 \\xff.jpg"} < set(train)
    odd = index.splits["train"].filter(np.array([key.startswith("train/cow/caf") for key in train]))
    assert sample_bytes(odd) == [jpeg(3)]
    assert {each.key: each.reason for each in index.unusable} == {
        "train/ant/gone.jpg": "dangling link: /nowhere/at/all.jpg is not there",
        "train/ant/above": "link to a folder that it lies in",
        "train/bee/pipe.jpg": "not a file: a pipe, socket or device",
    }
    assert index.ignored == {
        "images of test/ without class folders": 1, "no suffix": 2, ".csv": 1, ".ipynb_checkpoints": 1, "__MACOSX": 1,
        "@eaDir": 1, ".git": 1, "Thumbs.db": 1, "._*": 1,
    }  # fmt: skip
    assert index.num_found == num_entries(tmp_path / "t") + 1  # `above` is a folder to the system


def test_what_is_written_quarantined_and_left_out_is_all_that_was_found(tmp_path: Path) -> None:
    tree = odd_tree(tmp_path / "t")
    (tree / "train" / "ant" / "above").unlink()
    index = opened(tree)
    manifest = ingest_here(index, str(tmp_path / "out"))
    refused = read_table(files.join(str(tmp_path / "out"), "quarantine.parquet")).to_pylist()
    assert {row["key"]: row["reason"].split(":")[0] for row in refused} == {
        "train/ant/gone.jpg": "dangling link", "train/bee/cut.jpg": "damaged", "train/bee/pipe.jpg": "not a file",
    }  # fmt: skip
    assert manifest.quarantined == {"dangling link": 1, "not a file": 1, "damaged": 1}
    assert manifest.rows + len(refused) + index.num_ignored == num_entries(tree)
    keys = read_provenance(str(tmp_path / "out"), manifest, ["key"])["key"].to_pylist()
    assert "train/cow/caf\\xe9 \\xff.jpg" in keys


def test_the_user_is_told_what_was_found(tmp_path: Path) -> None:
    lines = found_lines(opened(odd_tree(tmp_path / "t")))
    assert lines[0] == (
        "found 42 files (folders): 29 labelled images (17 train, 12 val), 3 that can't be read, 10 left out"
    )
    assert lines[1] == "3 classes: ant 9, bee 11, cow 9"
    assert lines[2].startswith(
        "can't be read: train/ant/above (link to a folder that it lies in), train/ant/gone.jpg ("
    )
    assert lines[3].startswith("left out: 1 x images of test/ without class folders, 2 x no suffix, 1 x .csv, ")
    assert lines[3].endswith(" ... and 3 more")


def test_classes_without_validation_images_are_told(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", per_class=3)
    shutil.rmtree(tree / "val" / "bee")
    line = "no validation image in 1 of the classes: bee; how well they are recognised isn't measured"
    assert line in found_lines(opened(tree))
    assert not [each for each in found_lines(opened(tree / "train")) if "no validation image" in each]


def test_a_file_or_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "t", per_class=3)
    scan = os.scandir

    def closed(path: str) -> object:
        if path.endswith("train/ant/more/"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    (tree / "train" / "ant" / "more").mkdir()
    (tree / "train" / "link").symlink_to("/nowhere")
    monkeypatch.setattr(os, "access", lambda path, mode, effective_ids: not str(path).endswith("ant/001.jpg"))
    monkeypatch.setattr(os, "scandir", closed)
    index = opened(tree)
    assert {(each.split, each.key): each.reason for each in index.unusable} == {
        ("train", "train/ant/001.jpg"): "file not readable: Permission denied",
        ("val", "val/ant/001.jpg"): "file not readable: Permission denied",
        ("train", "train/ant/more"): "folder not readable: Permission denied",
        ("train", "train/link"): "dangling link: /nowhere is not there",
    }
    with pytest.raises(PermissionError, match="train/ant/more"):
        files.list_files(str(tree))


def test_a_class_whose_files_cannot_be_read_does_not_disappear(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", per_class=3)
    for split in ("train", "val"):
        (tree / split / "fly").mkdir()
        (tree / split / "fly" / "1.jpg").symlink_to("/nowhere")
    with pytest.raises(SourceError, match="class 'fly' has no training image"):
        opened(tree)


def test_a_class_of_which_no_image_decodes_does_not_disappear(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "t", per_class=3)
    for path in (tree / "train" / "bee").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="class 'bee': none of its 3 training images can be used; see quarantine"):
        ingest_here(opened(tree), str(tmp_path / "out"))


def test_a_path_that_is_not_utf8_is_refused_in_one_line() -> None:
    with pytest.raises(PipelineError, match=r"caf\\xe9: the path isn't valid UTF-8; rename it"):
        files.absolute("/data/caf\udce9")


def test_names_in_a_tar_may_be_anything_and_hidden_files_are_counted(tmp_path: Path) -> None:
    members = tree_files(make_tree(tmp_path / "t", per_class=2))
    odd = {"train/ant/caf\udce9.jpg": IMAGE, "train/ant/._000.jpg": b"x", "__MACOSX/train/ant/000.jpg": b"x"}
    index = opened(make_tar(tmp_path / "a.tar", {**members, **odd}))
    assert "train/ant/caf\\xe9.jpg" in index.splits["train"]["key"].to_pylist()
    assert index.ignored == {"__MACOSX": 1, "._*": 1}


def test_the_last_of_several_members_with_one_name_counts(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {f"{name}/{n}.jpg": jpeg(n) for name in ("ant", "bee") for n in range(4)})
    make_tar(tmp_path / "a.tar", {"ant/0.jpg": jpeg(77)}, "a")
    index = opened(tmp_path / "a.tar", for_evaluation=True)
    assert sample_bytes(index.splits["val"])[0] == jpeg(77)
    assert index.ignored == {"older versions of files in an archive": 1}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF", "JPEG2000"])
def test_images_are_known_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    try:
        picture(0).save(tmp_path / "x", format=kind)
    except (KeyError, OSError):
        pytest.skip(f"this PIL doesn't write {kind}")
    data = (tmp_path / "x").read_bytes()
    assert looks_like_image(data[:32])
    with Image.open(tmp_path / "x") as image:
        assert image.format == kind
    assert not looks_like_image(data[1:33])


def test_text_does_not_look_like_an_image() -> None:
    for text in (b"BM, a text about bitmaps", b"RIFF", b"", b"II* is no TIFF", b"GIF is a format", b"\xff\xd8"):
        assert not looks_like_image(text)


def test_one_kind_of_many_files_is_decided_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.ingestion.sources.recognise import contents

    names = [f"cat/{n}" for n in range(40)] + [f"dog/{n}.raw1" for n in range(40)]
    make_tar(tmp_path / "a.tar", {name: IMAGE if name.startswith("cat") else b"text" for name in names})
    read, count = files.read_range, []

    def counted(uri: str, offset: int, length: int) -> memoryview:
        count.append(uri)
        return read(uri, offset, length)

    monkeypatch.setattr(files, "read_range", counted)
    monkeypatch.setattr(contents, "_MOST_OF_A_KIND", 30)
    monkeypatch.setattr(contents, "_SAMPLE", 5)
    rows = contents.find_images(names, [str(tmp_path / "a.tar")] * 80, *places(tmp_path / "a.tar"), {})
    assert rows == list(range(40))
    assert len(count) <= 12


def places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import tarfile

    with tarfile.open(path) as tar:
        members = tar.getmembers()
    return np.array([each.offset_data for each in members]), np.array([each.size for each in members])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train/.ipynb_checkpoints/a.jpg", ".ipynb_checkpoints"), ("a/@eaDir/b.jpg", "@eaDir"), ("a/._b.jpg", "._*"),
        ("a/THUMBS.DB", "THUMBS.DB"), ("__MACOSX/a.jpg", "__MACOSX"), (".DS_Store", ".DS_Store"),
        ("a/b.jpg", None), ("a.b/c.jpg", None), ("a/...jpg", "...jpg"),
    ],
)  # fmt: skip
def test_what_systems_leave_behind(name: str, part: str | None) -> None:
    assert left_behind(name) == part


# --- random trees ------------------------------------------------------------------------------------------------

FOLDERS = (
    "train/ant",
    "train/bee",
    "val/ant",
    "val/bee",
    "test",
    "train/.hidden",
    "train/ant/more",
    "__MACOSX/x",
    "docs",
)
MEMBERS = ("a.jpg", "b.JPEG", "c.png", "d.tif", "no_suffix", "e.JPG.1", "f.txt", "Thumbs.db", "._g.jpg", "link", "pipe")


@settings(max_examples=30, deadline=None)
@given(st.sets(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(MEMBERS)), max_size=40))
def test_found_is_labelled_and_unreadable_and_left_out_for_any_tree(
    tmp_path_factory: pytest.TempPathFactory, members: set[tuple[str, str]]
) -> None:
    tree = tmp_path_factory.mktemp("any")
    for folder in ("train/ant", "train/bee", "val/ant"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "000.jpg").write_bytes(IMAGE)
    for folder, name in members:
        place = tree / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == "link":
            place.symlink_to("/nowhere")
        elif name == "pipe":
            os.mkfifo(place)
        else:
            place.write_bytes(b"text" if name == "f.txt" else IMAGE)
    refused = None
    try:
        index = opened(tree)
    except SourceError as error:
        refused = str(error)
    if refused is not None:  # images in docs/, of which nobody knows the split; a class without an image in val
        assert "'docs'" in refused or "val/bee" in refused
        return
    assert index.num_found == num_entries(tree)
    assert index.classes == ("ant", "bee")


# --- what is held out --------------------------------------------------------------------------------------------

KEYS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400)), min_size=0, max_size=60)


@settings(max_examples=120, deadline=None)
@given(KEYS, KEYS, st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
def test_new_images_never_move_old_ones_between_the_splits(
    before: list[tuple[int, int]], added: list[tuple[int, int]], share: float
) -> None:
    start = {(label, -n) for label in range(3) for n in (1, 2)}
    old, new = sorted({*before, *start}), sorted({*before, *start, *added})
    was, now = (
        dict(zip(rows, below_share([f"{a}/{b}" for a, b in rows], np.array([a for a, _ in rows]), share), strict=True))
        for rows in (old, new)
    )
    for label in range(3):
        moved = [row for row in old if row[0] == label and was[row] != now[row]]
        of_class = [was[row] for row in old if row[0] == label]
        # The only val row, or the only train row, of a class may have been one by the exception alone.
        assert not moved or (len(moved) == 1 and (sum(of_class) == 1 or sum(of_class) == len(of_class) - 1))
        mine = [now[row] for row in new if row[0] == label]
        assert any(mine)
        assert not all(mine)


def test_the_share_is_kept_and_the_draw_is_pinned() -> None:
    keys = [f"cat/{n}.jpg" for n in range(20_000)]
    is_val = below_share(keys, np.zeros(len(keys), np.int64), 0.1)
    assert abs(is_val.mean() - 0.1) < 0.01
    # Data sets that grow depend on these.
    assert np.flatnonzero(is_val)[:6].tolist() == [1, 12, 19, 44, 65, 72]
    assert abs(is_val[below_share(keys, np.zeros(len(keys), np.int64), 0.5, Stream.LOCK_BOX)].mean() - 0.1) < 0.01
    larger = below_share(keys, np.zeros(len(keys), np.int64), 0.2)
    assert not (is_val & ~larger).any()
