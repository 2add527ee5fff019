"""Images that are removed for good: every version reads as before without them, and no byte of them is left."""

import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest, parquet
from pipeline.dataset.edits import live_rows
from pipeline.dataset.mixture import mix
from pipeline.dataset.version import Changes
from pipeline.ingestion import ingest, verify_dataset
from pipeline.ingestion.changes.removed import removed_sources
from pipeline.ingestion.changes.state import read_state
from pipeline.ingestion.run import planned_ingest
from pipeline.ingestion.sources import Source, open_source
from pipeline.ingestion.target import WORK
from pipeline.storage import files
from pipeline.versions.compaction import compact
from pipeline.versions.drop import drop_version
from pipeline.versions.listing import list_versions
from pipeline.versions.removal.journal import Journal
from pipeline.versions.removal.run import forget
from pipeline.versions.removal.shards import rewrite
from tests.support.pictures.datasets import copied, ingest_here
from tests.support.pictures.images import jpeg, make_tree, tree_files
from tests.support.pictures.versions import deletions, make_version

Rows = dict[tuple[str, str], tuple[str, bytes]]


def rows_of(uri: str | Path) -> Rows:
    """Returns {(split, key): (class, image)} of a data set, and fails if a reader differs from another."""
    data = manifest.load(str(uri))
    found: Rows = {}
    for name, split in data.splits.items():
        table = parquet.read_rows(str(uri), split, np.arange(split.rows)).to_pylist()
        assert len(table) == split.rows
        found |= {(name, row["key"]): (data.classes[row["label"]], row["image"]) for row in table}
    return found


def without(rows: Rows, *keys: str) -> Rows:
    return {name: row for name, row in rows.items() if name[1] not in keys}


def values_of(path: Path) -> list[bytes]:
    """Returns each value of a Parquet file as bytes, decompressed."""
    table = pq.read_table(path)
    found = []
    for column in table.itercolumns():
        for value in column.to_pylist():
            found.append(value if isinstance(value, bytes) else str(value).encode())
    return found


def strings_in_common(folder: Path, image: bytes) -> set[str]:
    """Returns the files that hold a string of 64 bytes of an image, searched for one by one, without our own search."""
    strings = {image[at : at + 64] for at in range(len(image) - 63)}
    found = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        contents = [path.read_bytes()] + (values_of(path) if path.suffix == ".parquet" else [])
        for data in contents:
            if any(data[at : at + 64] in strings for at in range(len(data) - 63)):
                found.add(str(path.relative_to(folder)))
    return found


def noisy_png(seed: int, side: int = 40) -> bytes:
    """Returns a PNG of noise: no string of 64 bytes of it is in another one, header included."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of PNGs, `tree`, and v1, v2 and v3 of it in `photos`, to be copied."""
    tmp_path = tmp_path_factory.mktemp("made")
    tree = tmp_path / "tree"
    for split, start in (("train", 0), ("val", 500)):
        for number, name in enumerate(("ant", "bee", "cow")):
            (tree / split / name).mkdir(parents=True)
            for each in range(12):
                (tree / split / name / f"{each:03d}.png").write_bytes(noisy_png(start + 100 * number + each))
    (tree / "train/cow/bad.png").write_bytes(b"I am text" * 20)
    shutil.copy(tree / "train/ant/003.png", tree / "val/ant/twice.png")
    folder = tmp_path / "photos"
    ingest_here(open_source(str(tree), spool=str(tmp_path / "spool")), str(folder / "v1"), shard_size=30_000)
    (tree / "train/ant/000.png").unlink()
    (tree / "train/bee/001.png").write_bytes(noisy_png(901))
    (tree / "train/cow/new.png").write_bytes(noisy_png(902))
    ingest(tree, folder / "v2", onto=folder / "v1")
    (tree / "val/cow/more.png").write_bytes(noisy_png(903))
    ingest(tree, folder / "v3", onto=folder / "v2")
    return tmp_path


@pytest.fixture
def chain(made: Path, tmp_path: Path) -> Path:
    """v1, v2 and v3 of the source at `tmp_path / "tree"`, made by ingests; v2 adds, removes and changes images."""
    shutil.copytree(made / "tree", tmp_path / "tree")
    return shutil.copytree(made / "photos", tmp_path / "photos")


def test_the_image_is_gone_from_all_versions_and_no_string_of_it_is_left(chain: Path) -> None:
    before = {name: rows_of(chain / name) for name in ("v1", "v2", "v3")}
    digests = {each.name: each.digest for each in list_versions(chain)}
    image = before["v3"]["train", "train/bee/002.png"][1]
    assert strings_in_common(chain, image)
    done = forget(chain, ["train/bee/002.png"])
    assert done.rows == ("train/bee/002.png",)
    assert strings_in_common(chain, image) == set()
    for name in ("v1", "v2", "v3"):
        assert rows_of(chain / name) == without(before[name], "train/bee/002.png")
        assert verify_dataset(chain / name) == []
        assert manifest.load(str(chain / name)).digest == done.versions[name] != digests[name]
    rewritten = files.read_json(str(chain / "rewritten.json"))["digests"]
    assert rewritten == {digests[name]: done.versions[name] for name in digests}
    assert [each.parent for each in list_versions(chain)] == ["", "v1", "v2"]
    assert not (chain / "_versions" / "forget").exists()
    assert done.searched_files > len(
        [name for name in tree_files(chain) if not name.startswith("_versions")]
    )  # and the lease


def test_no_list_names_it_any_more(chain: Path) -> None:
    forget(chain, ["train/ant/003.png", "train/cow/bad.png"])  # one has a duplicate in val, the other is in quarantine
    for name, data in tree_files(chain).items():
        contents = [data] + (values_of(chain / name) if name.endswith(".parquet") else [])
        for key in (b"train/ant/003.png", b"ant/twice.png", b"cow/bad.png"):
            assert not [each[-200:] for each in contents if key in each], (name, key)


@pytest.mark.parametrize("key", ["train/ant/000.png", "train/bee/001.png"])
def test_rows_that_later_versions_left_out_are_removed_where_they_are_stored(chain: Path, key: str) -> None:
    before = {name: rows_of(chain / name) for name in ("v1", "v2", "v3")}
    image = before["v1"]["train", key][1]
    forget(chain, [key])
    assert strings_in_common(chain, image) == set()
    for name in ("v1", "v2", "v3"):
        assert rows_of(chain / name) == without(before[name], key)
        assert verify_dataset(chain / name) == []


def test_equal_pictures_go_with_it(chain: Path) -> None:
    done = forget(chain / "v2", ["val/ant/twice.png"])  # a version instead of the folder
    assert done.rows == ("train/ant/003.png", "val/ant/twice.png")
    for name in ("v1", "v2", "v3"):
        assert manifest.load(str(chain / name)).leaked == {"val": ()}


def test_the_versions_are_those_of_a_source_that_never_had_the_images(chain: Path, tmp_path: Path) -> None:
    """Facts of all rows are those of a full ingest: leaks, duplicates, pixel statistics, source digest, counts."""
    forget(chain, ["train/ant/003.png", "val/bee/002.png"])
    tree = tmp_path / "tree"
    for name in ("train/ant/003.png", "val/ant/twice.png", "val/bee/002.png"):
        (tree / name).unlink()
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s")), str(tmp_path / "full"), shard_size=30_000)
    compact(chain / "v3", chain / "v4")
    assert manifest.load(str(chain / "v4")) == manifest.load(str(tmp_path / "full"))


def test_a_later_ingest_does_not_bring_it_back(chain: Path, tmp_path: Path) -> None:
    key = "train/bee/002.png"
    forget(chain, [key])
    assert len(removed_sources(str(chain))) == 1
    shutil.copy(tmp_path / "tree" / key, tmp_path / "tree/val/bee/again.png")
    ingest(tmp_path / "tree", chain / "v4", onto=chain / "v3")
    assert not {("train", key), ("val", "val/bee/again.png")} & rows_of(chain / "v4").keys()
    image = (tmp_path / "tree" / key).read_bytes()
    assert strings_in_common(chain, image) == set()


def test_what_a_person_corrected_or_left_out_stays_so(family: Path) -> None:
    before = {name: rows_of(family / name) for name in ("v1", "v2", "v3")}
    data = manifest.load(str(family / "v2"))
    shard = data.splits["train"].shards[0]
    keys = parquet.stored_provenance(str(family / "v2"), shard, ["key"])["key"].to_pylist()
    live = live_rows(str(family / "v2"), shard)
    for key in (keys[0], keys[int(live[0])], keys[5]):  # one that v2 leaves out, one that it has, one after edits
        forget(family, [key])
        before = {name: without(rows, key) for name, rows in before.items()}
        for name, rows in before.items():
            assert rows_of(family / name) == rows
            assert verify_dataset(family / name) == []


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.lists(st.integers(0, 10**6), min_size=1, max_size=12), dropped=st.sampled_from(["", "v1", "v2"]))
def test_any_rows_of_any_chain_are_removed(copies: Callable[[], Path], draws: list[int], dropped: str) -> None:
    family = copies()
    before = {name: rows_of(family / name) for name in ("v1", "v2", "v3") if name != dropped}
    every = sorted({name for rows in before.values() for name in rows})
    keys = {every[draw % len(every)][1] for draw in draws}
    if dropped:
        drop_version(family / dropped)
    done = forget(family, keys)
    assert set(done.rows) == keys  # they begin with their split
    for name, rows in before.items():
        assert rows_of(family / name) == without(rows, *keys)
        assert verify_dataset(family / name) == []
    if dropped:
        for name in before:
            drop_version(family / name)
        assert not any(family.glob("v*"))


def test_of_a_dropped_version_only_the_shards_that_are_left_count(family: Path) -> None:
    first = manifest.load(str(family / "v3")).splits["train"].shards[0]
    rows = dict.fromkeys(range(first.live_rows), "gone")
    make_version(str(family / "v3"), str(family / "v4"), {"train": Changes(deletions(rows))})
    for name in ("v1", "v2", "v3"):
        drop_version(family / name)
    before = rows_of(family / "v4")
    (key,) = (key for split, key in list(before)[:1])
    assert forget(family, [key]).rows == (key,)
    assert rows_of(family / "v4") == without(before, key)
    assert verify_dataset(family / "v4") == []
    sizes = sum(path.stat().st_size for path in family.glob("v1/[tv]*/*.parquet"))
    assert {each.name: each.own_bytes for each in list_versions(family)}["v1"] == sizes


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs afterwards may tidy up."""


@pytest.mark.parametrize("step", ["write_ready", "copy", "delete", "end"])
def test_a_drop_after_a_removal_that_was_killed_loses_nothing(
    chain: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once new shards may lie there that no manifest names, a drop is refused until the removal has gone on."""
    before, key = {name: rows_of(chain / name) for name in ("v2", "v3")}, "train/ant/003.png"
    whole = getattr(Journal, step)

    def killed(*arguments: Any) -> None:
        whole(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, step, killed)
        with pytest.raises(Killed):
            forget(chain, [key])
    if step in ("write_ready", "copy"):
        with pytest.raises(DatasetError, match="images are being removed from its versions"):
            drop_version(chain / "v1")
        forget(chain, [key])
    drop_version(chain / "v1")
    if step == "delete":
        forget(chain, [key])
    for name, rows in before.items():
        assert rows_of(chain / name) == without(rows, key, "val/ant/twice.png")


def test_a_removal_that_is_killed_while_its_journal_goes_is_found(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either both say what is to be done, or the plan alone does: never the list of copies without the plan."""
    deleted = files.delete_files

    def killed(uri: str, names: list[str]) -> None:
        deleted(uri, names)
        if set(names) & {"plan.json", "ready.json"}:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "delete_files", killed)
        with pytest.raises(Killed):
            forget(chain, ["train/bee/002.png"])
    with pytest.raises(DatasetError, match="images are being removed from its versions"):
        drop_version(chain / "v1")
    forget(chain, ["train/bee/002.png"])
    drop_version(chain / "v1")
    assert ("train", "train/bee/002.png") not in rows_of(chain / "v2")


@pytest.mark.parametrize("writes", [1, 5, 12, 19, 30, 36])
def test_a_removal_that_is_killed_anywhere_goes_on(
    chain: Path, tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each write or deletion versions read as before or without the image, and the next call ends as it would."""
    before = {name: rows_of(chain / name) for name in ("v1", "v2", "v3")}
    key, count, killed = "train/ant/003.png", 0, False
    shutil.copytree(chain, tmp_path / "undisturbed")
    forget(tmp_path / "undisturbed", [key])

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(uri: str, *arguments: Any) -> Any:
            nonlocal count, killed
            if "lease" in uri or "lease.json" in str(arguments):
                return function(uri, *arguments)
            if killed or count == writes:
                killed = True
                raise Killed
            count += 1
            return function(uri, *arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_mapped", "delete_files", "delete_tree"):
            patch.setattr(files, name, counted(getattr(files, name)))
        with suppress(Killed):
            forget(chain, [key])
    for name, rows in before.items():
        assert rows_of(chain / name) in (rows, without(rows, key, "val/ant/twice.png"))
    if killed:
        forget(chain, [key])
    left = {name: data for name, data in tree_files(chain).items() if not name.startswith("_versions")}
    assert left == {
        name: data for name, data in tree_files(tmp_path / "undisturbed").items() if not name.startswith("_versions")
    }


def test_no_version_is_published_while_images_are_removed(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chain / "_versions/forget").mkdir(parents=True)
    (chain / "_versions/forget/plan.json").write_text('{"keys": []}')
    (tmp_path / "tree/train/ant/late.png").write_bytes(noisy_png(77))
    with pytest.raises(DatasetError, match="images are being removed from its versions"):
        ingest(tmp_path / "tree", chain / "v4", onto=chain / "v3")
    with pytest.raises(DatasetError, match="images are being removed from its versions"):
        compact(chain / "v3", chain / "v5")
    assert not (chain / "v4").exists()


def test_an_ingest_of_a_whole_source_that_begins_during_a_removal_brings_nothing_back(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ingest_meanwhile(*arguments: Any) -> Any:
        meanwhile = planned_ingest(Source(str(tmp_path / "tree")), str(chain / "v9"))
        with pytest.raises(DatasetError, match="images are being removed from its versions"), meanwhile:
            pass
        return rewrite(*arguments)

    monkeypatch.setattr("pipeline.versions.removal.run.rewrite", ingest_meanwhile)
    forget(chain, ["train/bee/002.png"])
    assert not (chain / "v9").exists()


def test_a_removal_does_not_begin_beside_an_ingest_that_has_written_nothing_yet(chain: Path, tmp_path: Path) -> None:
    begun, refused = planned_ingest(Source(str(tmp_path / "tree")), str(chain / "v9")), r"v9: an ingest into it"
    with begun, pytest.raises(DatasetError, match=refused):
        forget(chain, ["train/bee/002.png"])
    forget(chain, ["train/bee/002.png"])


def test_an_unfinished_ingest_stops_a_removal_before_anything_is_changed(chain: Path) -> None:
    (chain / "v4" / WORK).mkdir(parents=True)
    (chain / "v4" / WORK / "plan.json").write_text("{}")
    before = tree_files(chain)
    with pytest.raises(DatasetError, match=r"v4: an ingest into it is unfinished, which may hold the images; finish"):
        forget(chain, ["train/bee/002.png"])
    after = tree_files(chain)
    assert {k: v for k, v in after.items() if "_versions" not in k} == before


def test_a_key_that_is_in_no_version_removes_nothing(chain: Path) -> None:
    before = tree_files(chain)
    with pytest.raises(
        DatasetError, match=r"key=nothere: in no version in \S+, and 1 other key neither; .*nothing was"
    ):
        forget(chain, ["train/bee/002.png", "nothere", "nowhere"])
    assert {k: v for k, v in tree_files(chain).items() if "_versions" not in k} == before


def test_a_split_that_would_be_empty_is_refused(chain: Path) -> None:
    before = tree_files(chain)
    keys = [key for split, key in rows_of(chain / "v1") if split == "val"]
    with pytest.raises(DatasetError, match=r"v1: split 'val' would have no image left; drop this version first"):
        forget(chain, keys)
    assert {k: v for k, v in tree_files(chain).items() if "_versions" not in k} == before


def test_a_copy_beside_the_versions_is_found_and_the_next_call_searches_again(chain: Path, tmp_path: Path) -> None:
    image = (tmp_path / "tree/train/bee/002.png").read_bytes()
    (chain / "copy.bin").write_bytes(b"abc" + image[60:300])
    with pytest.raises(DatasetError, match=r"are left in \S+/copy\.bin: delete it; then run the same command again"):
        forget(chain, ["train/bee/002.png"])
    with pytest.raises(DatasetError, match=r"are left in \S+/copy\.bin"):
        forget(chain, ["train/bee/002.png"])
    assert ("train", "train/bee/002.png") not in rows_of(chain / "v3")
    (chain / "copy.bin").unlink()
    forget(chain, ["train/bee/002.png"])
    with pytest.raises(DatasetError, match=r"key=train/bee/002\.png: in no version"):
        forget(chain, ["train/bee/002.png"])


def test_a_second_removal_does_not_forget_what_the_first_has_yet_to_find(chain: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "tree/train/bee/002.png", chain / "copy.bin")
    for key in ("train/bee/002.png", "train/ant/005.png"):
        with pytest.raises(DatasetError, match=r"are left in \S+/copy\.bin: delete it"):
            forget(chain, [key])
    with pytest.raises(DatasetError, match=r"key=nothere: in no version"):
        forget(chain, ["train/bee/002.png", "nothere"])
    (chain / "copy.bin").unlink()
    forget(chain, ["train/bee/002.png", "train/ant/005.png"])
    assert not (chain / "_versions/forget").exists()


def test_a_removal_that_is_refused_leaves_no_traces(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key for split, key in rows_of(chain / "v1") if split == "val"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_ready", _killed)
        with pytest.raises(Killed):
            forget(chain, ["train/bee/003.png", "val/bee/004.png"])
    with pytest.raises(DatasetError, match="would have no image left"):
        forget(chain, keys)
    assert not list((chain / "_versions/forget").rglob("*.*"))
    with pytest.raises(DatasetError, match=r"key=nothere: in no version"):
        forget(chain, ["nothere"])
    assert forget(chain, ["train/bee/002.png"]).rows == ("train/bee/002.png",)


def _killed(*_: Any) -> None:
    raise Killed


def test_another_image_that_is_called_the_same_stays_in_the_lists(chain: Path, tmp_path: Path) -> None:
    """v1 has a duplicate of an image under a name that v4 gives to another picture."""
    tree = tmp_path / "tree"
    (tree / "val/ant/twice.png").write_bytes(noisy_png(555))
    (tree / "train/cow/bad.png").write_bytes(b"I am another text" * 20)
    ingest(tree, chain / "v4", onto=chain / "v3")
    done = forget(chain, ["train/ant/003.png"])
    assert "val/ant/twice.png" in done.rows
    assert ("val", "val/ant/twice.png") in rows_of(chain / "v4")
    (tree / "train/ant/003.png").unlink()
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s")), str(tmp_path / "full"), shard_size=30_000)
    state = read_state(str(chain / "v4"))
    assert state.num_rows == manifest.load(str(chain / "v4")).rows
    compact(chain / "v4", chain / "v5")
    assert manifest.load(str(chain / "v5")) == manifest.load(str(tmp_path / "full"))


def test_an_image_that_stays_and_holds_pixels_of_it_is_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=6)
    (tree / "train/ant/first.jpg").write_bytes(jpeg(1, 90, 90))
    # Another picture, of whose bytes most are those of the first: its last rows are lost and replaced.
    half = jpeg(1, 90, 90)[:1800] + b"\xff\xd9"
    (tree / "train/ant/half.jpg").write_bytes(half)
    index = open_source(str(tree), spool=str(tmp_path / "spool"))
    from pipeline.ingestion.image_check import ImageHandling

    ingest_here(index, str(tmp_path / "photos/v1"), handling=ImageHandling("header"))
    with pytest.raises(DatasetError, match=r"are part of other images, train/ant/half\.jpg: remove them, too"):
        forget(tmp_path / "photos", ["train/ant/first.jpg"])
    assert forget(tmp_path / "photos", ["train/ant/half.jpg"]).rows == ("train/ant/half.jpg",)


def test_tables_that_every_encoder_writes_are_no_trace(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=6)
    index = open_source(str(tree), spool=str(tmp_path / "spool"))
    ingest_here(index, str(tmp_path / "photos/v1"), shard_size=9000)
    (tmp_path / "photos/raw.jpg").write_bytes(jpeg(4711))
    done = forget(tmp_path / "photos", ["train/ant/000.jpg"])
    assert done.rows == ("train/ant/000.jpg",)


def test_a_mixture_beside_the_versions_is_made_anew(chain: Path) -> None:
    mix({"old": str(chain / "v1"), "new": str(chain / "v3")}, str(chain / "mixed"))
    before = rows_of(chain / "mixed")
    forget(chain, ["train/bee/002.png"])
    assert rows_of(chain / "mixed") == without(before, "old/train/bee/002.png", "new/train/bee/002.png")
    assert verify_dataset(chain / "mixed") == []


@pytest.mark.parametrize("dropped", [("v1",), ("v3",), ("v1", "v2", "v3")], ids="-".join)
def test_a_mixture_is_made_anew_also_of_sources_that_were_dropped(chain: Path, dropped: tuple[str, ...]) -> None:
    mix({"old": str(chain / "v1"), "new": str(chain / "v3")}, str(chain / "mixed"))
    for name in dropped:
        drop_version(chain / name)
    before = rows_of(chain / "mixed")
    for key in ("train/cow/new.png", "train/ant/000.png", "val/ant/twice.png"):
        done = forget(chain, [key])
        assert "mixed" in done.versions
        gone = [f"{source}/{row}" for source in ("old", "new") for row in done.rows]
        before = without(before, *gone)
        assert rows_of(chain / "mixed") == before
        assert verify_dataset(chain / "mixed") == []
        data = manifest.load_stored(str(chain / "mixed"))
        assert not {*gone} & {key for keys in data.leaked.values() for key in keys}
        assert data.quarantined == {"no image": 2}
    if dropped == ("v1", "v2", "v3"):
        drop_version(chain / "mixed")
        assert not list(chain.glob("v*/*"))


def test_a_mixture_with_a_source_whose_files_are_gone_stops_a_removal(chain: Path) -> None:
    mix({"old": str(chain / "v1"), "new": str(chain / "v2")}, str(chain / "mixed"))
    drop_version(chain / "v2")
    min((chain / "v2/train").glob("*.parquet")).unlink()
    before = tree_files(chain)
    with pytest.raises(DatasetError, match=r"mixed: is a mixture with \S+/v2, which was dropped, .* drop the mixture"):
        forget(chain, ["train/bee/002.png"])
    assert {k: v for k, v in tree_files(chain).items() if "_versions" not in k} == {
        k: v for k, v in before.items() if "_versions" not in k
    }
    drop_version(chain / "mixed")
    assert forget(chain, ["train/bee/002.png"]).rows == ("train/bee/002.png",)


def test_what_is_left_of_a_dropped_version_names_no_image(chain: Path) -> None:
    drop_version(chain / "v1")
    forget(chain, ["val/ant/twice.png"])  # which was leaked, too
    assert "ant/twice.png" not in (chain / "v1/dropped.json").read_text()


def test_a_removal_after_a_drop_that_was_killed_takes_what_described_the_dropped_version(chain: Path) -> None:
    (chain / "v1/manifest.json").rename(chain / "v1/dropped.json")  # as a drop leaves it that is killed at once
    forget(chain, ["train/bee/002.png"])
    assert ("train", "train/bee/002.png") not in rows_of(chain / "v3")
    assert not (chain / "v1/quality.html").exists()
    assert verify_dataset(chain / "v3") == []


def test_a_shard_that_holds_nothing_else_goes(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=6)
    folder = tmp_path / "photos"
    ingest_here(open_source(str(tree), spool=str(tmp_path / "spool")), str(folder / "v1"))
    (tree / "train/ant/new.jpg").write_bytes(jpeg(8))
    ingest(tree, folder / "v2", onto=folder / "v1")
    before = rows_of(folder / "v2")
    forget(folder, ["train/ant/new.jpg"])
    assert rows_of(folder / "v2") == without(before, "train/ant/new.jpg")
    assert not list((folder / "v2/train").glob("*"))
    assert set(manifest.load_stored(str(folder / "v2")).version.bases) == {
        manifest.load(str(folder / "v1")).digest[:12]
    }


def test_versions_in_a_bucket_forget_as_on_a_disk(chain: Path, s3: str) -> None:
    for name in ("v1", "v2", "v3"):
        copied(str(chain / name), f"{s3}/forget/{name}")
    query = f"?endpoint_override={os.environ['AWS_ENDPOINT_URL'].removeprefix('http://')}&scheme=http"
    there, here = forget(f"{s3}/forget{query}", ["train/ant/003.png"]), forget(chain, ["train/ant/003.png"])
    assert there.searched_files == here.searched_files  # the journal isn't searched
    assert there.rows == here.rows
    assert there.versions == here.versions
    assert [name for name, _ in files.list_files(f"{s3}/forget") if name.startswith("_versions")] == []
