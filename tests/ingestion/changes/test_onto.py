"""A version of a data set: however a source came to be what it is, the version holds what a full ingest of it holds."""

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DatasetError, PipelineError, SourceError
from pipeline.dataset import image_codec, version
from pipeline.dataset.edits import DELETIONS_SCHEMA, read_edits
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, load, load_stored
from pipeline.dataset.parquet import read_rows, read_table
from pipeline.dataset.version import Changes
from pipeline.ingestion import run, shard_task
from pipeline.ingestion.api import ingest, preview_ingest
from pipeline.ingestion.changes import onto as parents
from pipeline.ingestion.changes.find import Counts
from pipeline.ingestion.changes.onto import Parent
from pipeline.ingestion.changes.state import read_pixels, read_state
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings
from pipeline.ingestion.quality import report
from pipeline.ingestion.sources import Source, open_source
from pipeline.ingestion.target import WORK
from pipeline.ingestion.verify import verify_dataset
from pipeline.storage import files
from pipeline.versions import forget
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree, picture, tree_files
from tests.support.pictures.versions import corrections, deletions, make_version


def _encoded(seed: int, mode: str = "RGB", quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture(seed, 40, 48).convert(mode).save(out, format="JPEG", quality=quality)
    return out.getvalue()


# Different pictures, the same ones in another quality (near duplicates), grey ones (converted), and what is refused.
POOL = [
    *(_encoded(seed) for seed in range(8)),
    *(_encoded(seed, quality=70) for seed in range(3)),
    *(_encoded(seed, "L") for seed in (20, 21)),
    b"I am text",
    _encoded(30)[:300],
]


class Tree:
    """A source on a disk: NAME.jpg and NAME.cls below train and val. Each change of a file has a time of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self._time = root, 10**18
        for number, name in enumerate(("train/0", "train/1", "val/0", "val/1")):  # these stay
            self.write(f"{name}-stays.jpg", _encoded(100 + number))
            self.write(f"{name}-stays.cls", ["ant", "bee"][number % 2].encode())

    def write(self, name: str, data: bytes) -> None:
        """Writes a file if its bytes are others, as a copying program does."""
        place = self.root / name
        if not place.exists() or place.read_bytes() != data:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            self.touch(name)

    def touch(self, name: str) -> None:
        if (self.root / name).exists():
            self._time += 1000
            os.utime(self.root / name, ns=(self._time, self._time))

    def put(self, name: str, image: int | None, label: str = "ant") -> None:
        """Writes an image of POOL with its label, or removes both."""
        if image is None:
            for suffix in ("jpg", "cls"):
                (self.root / f"{name}.{suffix}").unlink(missing_ok=True)
        else:
            self.write(f"{name}.jpg", POOL[image])
            self.write(f"{name}.cls", label.encode())

    def set_cows(self, has_cows: bool) -> None:
        """Adds a class, or gives its images to another one: labels change their numbers."""
        self.put("train/aa-cow", 7 if has_cows else None, "aardvark")
        for place in self.root.rglob("*.cls"):
            if not has_cows and place.read_bytes() in (b"cow", b"aardvark"):
                self.write(str(place.relative_to(self.root)), b"ant")
        self.put("train/cow", 6 if has_cows else None, "cow")

    def ingest(self, out: Path, parent: Path | None = None, recheck: bool = False) -> Manifest:
        index = open_source(Source(str(self.root), "webdataset"), spool=str(out.parent / "spool"))
        return ingest_here(
            index, str(out), shard_size=9000, parent=None if parent is None else Parent(str(parent), recheck)
        )


def content(uri: Path) -> dict[str, Any]:
    """Returns all that a data set says of its source, but how the rows lie in shards."""
    data = load(str(uri))
    rows = {}
    for name, split in data.splits.items():
        table = read_rows(str(uri), split, np.arange(split.rows), ("key", "label", "image", "height", "width"))
        rows[name] = sorted(table.to_pylist(), key=lambda row: str(row["key"]))
        assert split.rows_per_class == tuple(np.bincount(table["label"].to_numpy(), minlength=len(data.classes)))
    values = asdict(data)
    for name in ("splits", "version", "schema_version", "digest", "name"):
        del values[name]
    values["quality"]["pairs"] = sorted(
        [sorted([pair.pop("first"), pair.pop("second")]), pair]
        for pair in values["quality"]["pairs"]
        if not pair["exact"]
    )
    pixels = read_pixels(str(uri))
    assert pixels is not None
    return {
        **values,
        "rows": rows,
        "quarantine": read_table(f"{uri}/quarantine.parquet").to_pylist(),
        "near": pixels.near.to_pylist(),
        "histogram": pixels.histogram.tolist(),
        "state": read_state(str(uri)).to_pylist(),
    }


places = st.sampled_from([f"{split}/{name}" for split in ("train", "val", "test") for name in "abcdef"])
step = st.dictionaries(
    places, st.none() | st.tuples(st.integers(0, len(POOL) - 1), st.sampled_from(["ant", "bee", "cow"])), max_size=14
)


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves quality.html empty: it takes most of the time of a small ingest, and follows from the manifest."""
    monkeypatch.setattr(report, "render", lambda *args: "")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(step, st.sets(places), st.booleans(), st.booleans()), min_size=2, max_size=4))
@example(  # the pixels of a near duplicate leave with one image and come back with another
    steps=[
        ({"test/f": (0, "ant"), "train/a": (8, "ant")}, set(), True, False),
        ({"train/a": None, "train/d": (8, "ant")}, set(), False, False),
    ]
)
def test_a_chain_of_versions_holds_what_a_full_ingest_of_each_source_holds(
    steps: list[tuple[dict[str, Any], set[str], bool, bool]], tmp_path_factory: pytest.TempPathFactory, no_pages: None
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    tree = Tree(folder / "source")
    previous = None
    for number, (changes, touched, recheck, has_cows) in enumerate(steps):
        for name, change in changes.items():
            tree.put(name, *(change or (None,)))
        tree.set_cows(has_cows)
        for name in touched:
            tree.touch(f"{name}.jpg")
        try:
            whole = tree.ingest(folder / f"whole-{number}")
        except (DatasetError, SourceError) as error:  # a class without a training image that can be used, for example
            with pytest.raises(type(error), match=re.escape(str(error).split(":")[-1])):
                tree.ingest(folder / f"v{number}", previous, recheck and previous is not None)
            shutil.rmtree(folder / f"v{number}", ignore_errors=True)
            shutil.rmtree(folder / f"whole-{number}", ignore_errors=True)
            continue
        version = folder / f"v{number}"
        tree.ingest(version, previous, recheck and previous is not None)
        assert content(version) == content(folder / f"whole-{number}")
        assert load(str(version)).source_digest == whole.source_digest
        assert verify_dataset(version) == []
        previous = version
    shutil.rmtree(folder)


# --- what people have changed ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A source with eleven images, and its data set v1."""
    source = Tree(tmp_path / "source")
    for number, name in enumerate("abcdefg"):
        source.put(f"train/{name}", number, "ant")
    source.ingest(tmp_path / "v1")
    return source


def row_of(uri: Path, key: str) -> int:
    data = load(str(uri))
    table = read_rows(str(uri), data.split("train"), np.arange(data.split("train").rows), ("key",))
    return table["key"].to_pylist().index(key)


def classes_of(uri: Path) -> dict[str, str]:
    data = load(str(uri))
    split = data.split("train")
    table = read_rows(str(uri), split, np.arange(split.rows), ("key", "label"))
    return {row["key"]: data.classes[row["label"]] for row in table.to_pylist()}


def test_what_people_have_corrected_and_removed_outlives_the_next_ingest(tree: Tree, tmp_path: Path) -> None:
    before = classes_of(tmp_path / "v1")
    relabelled, removed = "train/a.jpg", "train/b.jpg"
    changes = Changes(
        deletions({row_of(tmp_path / "v1", removed): "corrected: no animal"}),
        corrections({row_of(tmp_path / "v1", relabelled): "bee"}),
    )
    make_version(str(tmp_path / "v1"), str(tmp_path / "v2"), {"train": changes})
    shutil.copytree(tmp_path / "v1" / "_state", tmp_path / "v2" / "_state")
    for name in ("train/a", "train/b"):
        tree.touch(f"{name}.jpg")
    tree.put("train/h", 20 % len(POOL), "ant")
    tree.ingest(tmp_path / "v3", tmp_path / "v2")
    expected = {key: name for key, name in before.items() if key != removed} | {relabelled: "bee", "train/h.jpg": "ant"}
    assert classes_of(tmp_path / "v3") == expected
    whole = tree.ingest(tmp_path / "whole")
    assert load(str(tmp_path / "v3")).source_digest == whole.source_digest  # it is of the source, whatever people say
    tree.put("train/a", 0, "ant")
    tree.ingest(tmp_path / "v4", tmp_path / "v3")
    assert classes_of(tmp_path / "v4") == expected
    # until the source has another class for the one, and other bytes for the other
    tree.write("train/c.cls", b"bee")
    tree.write("train/a.cls", b"bee")
    tree.put("train/b", 9, "ant")
    tree.ingest(tmp_path / "v5", tmp_path / "v4")
    tree.write("train/a.cls", b"ant")
    tree.ingest(tmp_path / "v6", tmp_path / "v5")
    assert classes_of(tmp_path / "v5") == expected | {removed: "ant", "train/c.jpg": "bee"}
    assert classes_of(tmp_path / "v6") == expected | {relabelled: "ant", removed: "ant", "train/c.jpg": "bee"}


def test_a_removed_image_is_remembered_when_all_others_of_its_shard_are_gone(tree: Tree, tmp_path: Path) -> None:
    changes = Changes(deletions({row_of(tmp_path / "v1", "train/b.jpg"): "corrected: no animal"}))
    make_version(str(tmp_path / "v1"), str(tmp_path / "v2"), {"train": changes})
    for place in (tree.root / "train").glob("*.jpg"):
        if place.stem != "b":
            place.write_bytes(_encoded(200 + ord(place.stem[0])))
    tree.ingest(tmp_path / "v3", tmp_path / "v2")
    assert "train/b.jpg" not in classes_of(tmp_path / "v3")
    tree.ingest(tmp_path / "v4", tmp_path / "v3")
    assert classes_of(tmp_path / "v4") == classes_of(tmp_path / "v3")
    assert verify_dataset(tmp_path / "v4") == []


def test_a_removed_image_is_remembered_when_its_class_is_gone(tree: Tree, tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    tree.put("train/h", 6, "cow")
    tree.put("train/i", 7, "cow")
    tree.ingest(versions / "v1")
    changes = Changes(deletions({row_of(versions / "v1", "train/h.jpg"): "corrected: no animal"}))
    make_version(str(versions / "v1"), str(versions / "v2"), {"train": changes})
    shutil.copytree(versions / "v1" / "_state", versions / "v2" / "_state")
    for name in ("train/h", "train/i"):
        tree.put(name, None)
    assert tree.ingest(versions / "v3", versions / "v2").classes == ("ant", "bee")
    tree.put("train/h", 6, "ant")
    tree.ingest(versions / "v4", versions / "v3")
    assert "train/h.jpg" not in classes_of(versions / "v4")
    # An image that is removed for good leaves a digest of the source as it is without that image.
    forget(versions, ["train/e.jpg"])
    tree.put("train/e", None)
    assert load(str(versions / "v4")).source_digest == tree.ingest(tmp_path / "with").source_digest
    tree.put("train/h", None)
    assert load(str(versions / "v3")).source_digest == tree.ingest(tmp_path / "without").source_digest


def test_a_split_that_is_gone_takes_its_edits_with_it(tree: Tree, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        tree.put(f"test/{name}", number + 5, "ant")
    tree.ingest(tmp_path / "v2", tmp_path / "v1")
    changes = {"test": Changes(deletions({0: "corrected: no animal"})), "train": Changes(deletions({0: "gone"}))}
    make_version(str(tmp_path / "v2"), str(tmp_path / "v3"), changes)
    for name in "ab":
        tree.put(f"test/{name}", None)
    data = tree.ingest(tmp_path / "v4", tmp_path / "v3")
    assert verify_dataset(tmp_path / "v4") == []
    assert data.version is not None
    assert {base.uri for base in data.version.bases.values()} == {"../v1"}


# --- the state, and what is refused ------------------------------------------------------------------------------


def test_without_recorded_states_a_version_is_the_same(tree: Tree, tmp_path: Path, no_pages: None) -> None:
    tree.put("train/h", 9, "ant")
    tree.put("train/a", None)
    tree.ingest(tmp_path / "v2", tmp_path / "v1")
    shutil.rmtree(tmp_path / "v1" / "_state")
    tree.ingest(tmp_path / "again", tmp_path / "v1")
    assert content(tmp_path / "again") == content(tmp_path / "v2")
    assert load(str(tmp_path / "again")).digest == load(str(tmp_path / "v2")).digest


def test_a_histogram_of_pixels_that_decode_to_others_now_is_made_anew(
    tree: Tree, tmp_path: Path, no_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.ingestion.changes import histogram

    tree.put("train/a", None)
    tree.ingest(tmp_path / "v2", tmp_path / "v1")
    plain, decoded = image_codec.decode, []

    def other(image: Any) -> Any:
        decoded.append(image)
        pixels = plain(image).copy()
        pixels[0, 0] ^= len(decoded) == 1  # one value of the row that is gone
        return pixels

    monkeypatch.setattr(histogram, "decode", other)
    tree.ingest(tmp_path / "again", tmp_path / "v1")
    assert len(decoded) == 1 + load(str(tmp_path / "v2")).rows
    assert content(tmp_path / "again") == content(tmp_path / "v2")


def test_a_version_is_refused_where_it_cannot_be(tree: Tree, tmp_path: Path) -> None:
    from pipeline.dataset.mixture import mix

    v1, source = tmp_path / "v1", Source(str(tree.root), "webdataset")
    for settings_, what in (
        (
            IngestSettings(seed=1, shard_bytes=9000),
            r"seed=1, and the data set .*/v1 was made with seed=0; a version",
        ),
        (IngestSettings(), "shard_bytes=201326592, and the data set .* was made with shard_bytes=9000"),
        (IngestSettings(0, 9000, ImageHandling("header")), "checks=header, and .* made with checks=decode"),
    ):
        with pytest.raises(DatasetError, match=what):
            ingest(source, tmp_path / "v2", onto=v1, settings=settings_)
    shutil.copytree(v1, tmp_path / "copy")
    mix({"one": str(v1), "two": str(tmp_path / "copy")}, str(tmp_path / "mixture"))
    for out, parent, what in (
        (tmp_path / "v2", tmp_path / "mixture", "is a mixture, which has no versions"),
        (tmp_path / "v2", tmp_path / "nowhere", "no manifest.json, so no finished data set"),
        (v1 / "v2", v1, f"a version lies beside its parent {v1}; give --out {tmp_path}/v2"),
        (tmp_path / "more" / "v2", v1, f"a version lies beside its parent {v1}; give --out {tmp_path}/v2"),
        (v1, v1, f"a version lies beside its parent {v1}; give --out {tmp_path}/NAME"),
        ("s3://bucket/v2", v1, f"a version lies beside its parent {v1}; give --out {tmp_path}/v2"),
    ):
        with pytest.raises(DatasetError, match=what):
            ingest(source, out, onto=parent)
    with pytest.raises(PipelineError, match="give it with onto"):
        ingest(source, tmp_path / "v2", recheck=True)
    assert not (tmp_path / "v2").exists()


def test_a_small_version_needs_no_ray_and_a_dry_run_says_what_it_holds(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.ingestion.api.ray_session", None)  # would be called
    tree.put("train/h", 9, "ant")
    tree.put("train/i", 13, "ant")  # text
    tree.put("train/a", None)
    caplog.set_level("INFO")
    source = Source(str(tree.root), "webdataset")
    preview = preview_ingest(source, tmp_path / "v2", onto=tmp_path / "v1")
    assert (preview.cost.rows, [shard.path for shard in preview.shards]) == (2, ["train/00000-of-00001.parquet"])
    preview_ingest(source, tmp_path / "v2", onto=tmp_path / "v1", recheck=True)
    assert "10 files had to be read to be compared" in caplog.text
    assert not (tmp_path / "v2").exists()
    done = ingest(source, tmp_path / "v2", onto=tmp_path / "v1")
    assert done.changes == Counts(kept=10, new=2, again=0, changed=0, gone=1, relabelled=0, read=0)
    assert done.manifest == load(str(tmp_path / "v2"))
    assert done.manifest.quarantined == {"no image": 1}
    assert len(done["train"]) == 9
    told = "10 rows kept, 2 new, 0 changed, 1 gone, 0 of another class"
    assert sum(told in record.message for record in caplog.records) == 3
    assert not (tmp_path / "v2" / WORK).exists()
    here = tree.ingest(tmp_path / "same", tmp_path / "v1")
    assert here.digest == done.manifest.digest
    again = ingest(source, tmp_path / "v3", onto=tmp_path / "v2")  # nothing has changed: a version all the same
    assert "nothing has changed: the version holds the rows of" in caplog.text
    assert again.changes == Counts(
        kept=11, new=0, again=1, changed=0, gone=0, relabelled=0, read=0
    )  # the text is tried again


def test_an_interrupted_version_goes_on_with_the_shards_that_it_has(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("hijk"):
        tree.put(f"train/{name}", number, "ant")
        tree.put(f"val/{name}", number, "bee")
    source = Source(str(tree.root), "webdataset")
    plain, made = shard_task.finish_shard, []

    def killed(plan: Any, *args: Any) -> Any:
        made.append(plan.path)
        if len(made) == 2:
            raise KeyboardInterrupt
        return plain(plan, *args)

    monkeypatch.setattr(run, "finish_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "v2", onto=tmp_path / "v1")
    tree.put("train/l", 9, "ant")
    tree.ingest(tmp_path / "other")
    tree.put("train/l", None)
    with pytest.raises(DatasetError, match="unfinished ingest with another onto"):
        ingest(source, tmp_path / "v2", onto=tmp_path / "other")
    done = ingest(source, tmp_path / "v2", onto=tmp_path / "v1")
    assert (done.trusted_shards, len(made)) == (1, 3)
    whole = tree.ingest(tmp_path / "at-once", tmp_path / "v1")
    assert whole.digest == done.manifest.digest
    for name in ("train/00000-of-00001.parquet", "val/00000-of-00001.parquet"):
        assert (tmp_path / "v2" / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()


def test_a_parent_that_is_changed_meanwhile_ends_the_ingest(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*args: Any) -> str:
        stored = load_stored(str(tmp_path / "v1"))
        place = str(tmp_path / "v1" / MANIFEST_NAME)
        files.write_bytes(place, replace(stored, repaired={"x": 1}).with_digest().to_json())
        return ""

    monkeypatch.setattr(report, "render", change)
    with pytest.raises(DatasetError, match="/v1: has been changed meanwhile; run the same command again"):
        tree.ingest(tmp_path / "v2", tmp_path / "v1")
    assert not (tmp_path / "v2" / MANIFEST_NAME).exists()


def test_a_moved_family_of_versions_reads_and_grows_on(tree: Tree, tmp_path: Path) -> None:
    tree.put("train/h", 9, "ant")
    tree.ingest(tmp_path / "v2", tmp_path / "v1")
    (tmp_path / "moved").mkdir()
    for name in ("v1", "v2"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    shutil.copytree(tmp_path / "source", tmp_path / "elsewhere")  # with its times
    tree.root = tmp_path / "elsewhere"
    tree.put("train/b", None)
    v3 = tree.ingest(tmp_path / "moved" / "v3", tmp_path / "moved" / "v2")
    assert v3.version is not None
    assert {base.uri for base in v3.version.bases.values()} == {"../v1", "../v2"}
    assert verify_dataset(tmp_path / "moved" / "v3") == []


def test_a_version_chooses_its_new_rows_once_and_reads_its_parent_and_keys_once(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pages: None
) -> None:
    counts = Counter[str]()

    def counted(owner: Any, name: str, is_one: Callable[..., bool] = lambda *_: True) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            counts[name] += is_one(*arguments)
            return function(*arguments)

        monkeypatch.setattr(owner, name, call)

    tree.put("train/a", None)
    tree.put("train/b", 1, "bee")
    tree.put("train/new", 8)
    counted(parents.Onto, "new_rows")
    counted(version, "load_stored")
    counted(version, "stored_provenance", lambda uri, shard, columns=None: columns == ["key"])
    ingest(Source(str(tree.root), "webdataset"), tmp_path / "v2", onto=tmp_path / "v1")
    assert counts == Counter({"new_rows": 1, "load_stored": 0, "stored_provenance": 1})


def test_deletions_say_why(tree: Tree, tmp_path: Path) -> None:
    tree.put("train/a", None)
    tree.put("train/b", 9, "ant")
    data = tree.ingest(tmp_path / "v2", tmp_path / "v1")
    assert data.version is not None
    table = read_edits(str(tmp_path / "v2"), data.version.deletions, DELETIONS_SCHEMA).to_pylist()
    assert {row["key"]: row["reason"] for row in table} == {
        "train/a.jpg": "gone from the source",
        "train/b.jpg": "changed in the source",
    }


def test_a_version_says_when_a_compacted_copy_would_be_read_faster(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    source = Source(str(tree.root), "webdataset")
    tree.put("train/a", None)
    ingest(source, tmp_path / "v2", onto=tmp_path / "v1")
    assert "versions compact" not in caplog.text
    tree.put("train/b", None)
    tree.put("train/c", None)
    ingest(source, tmp_path / "v3", onto=tmp_path / "v2")
    assert "3 of 11 stored rows are left out: `image-pipeline versions compact` makes" in caplog.text
    monkeypatch.setattr(parents, "_MOST_DELETED", 0.5)
    monkeypatch.setattr(parents, "_MOST_BASES", 1)
    tree.put("train/d", 12, "ant")
    ingest(source, tmp_path / "v4", onto=tmp_path / "v3")
    tree.put("train/d", 11, "ant")
    tree.put("train/h", 11, "ant")
    tree.ingest(tmp_path / "v5", tmp_path / "v4")
    assert parents.why_compact(load(str(tmp_path / "v4"))) == ""
    tree.put("train/h", 10, "ant")
    tree.put("val/h", 10, "bee")
    tree.ingest(tmp_path / "v6", tmp_path / "v5")
    assert parents.why_compact(load(str(tmp_path / "v5"))) == ""
    tree.put("val/i", 9, "bee")
    data = tree.ingest(tmp_path / "v7", tmp_path / "v6")
    assert parents.why_compact(data) == f"the shards lie in {len(data.version.bases if data.version else ())} data sets"


# --- with Ray ----------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_version_is_the_same_by_ray_and_without_it(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source", per_class=6)
    ingest(source, tmp_path / "v1")
    make_tree(tmp_path / "more", per_class=9)
    for name, data in tree_files(tmp_path / "more").items():
        (source / name).write_bytes(data)
    ingest(source, tmp_path / "here", onto=tmp_path / "v1")
    monkeypatch.setattr(run, "SMALL_ROWS", 0)
    ingest(source, tmp_path / "by-ray", onto=tmp_path / "v1", workers=2)
    one, other = (
        {name: data for name, data in tree_files(tmp_path / out).items() if name != "manifest.json"}
        for out in ("here", "by-ray")
    )
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"_state/sources.parquet"}
    assert load(str(tmp_path / "here")).digest == load(str(tmp_path / "by-ray")).digest
