import io
import os
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest, open_dataset, parquet
from pipeline.dataset.mixture import mix
from pipeline.dataset.row_reader import load_index
from pipeline.ingestion import correct, ingest, publish, verify_dataset
from pipeline.ingestion.changes.onto import edits_by_people
from pipeline.ingestion.corrections.reviewed import reviewed_rows
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.sources import open_source
from pipeline.storage import files
from pipeline.versions import compaction, stored_rows
from pipeline.versions.compaction import compact
from pipeline.versions.drop import drop_version
from pipeline.versions.listing import list_versions
from pipeline.versions.removal.run import forget
from tests.support.pictures.datasets import copied, ingest_here
from tests.support.pictures.images import jpeg, make_tree, tree_files

_TIMES = ("_state/sources.parquet", "_state/near-duplicates.parquet")
"""Files that no digest covers: times of the source, and near duplicates in the order in which they were found."""


def full(tree: Path, out: Path, **settings: Any) -> None:
    ingest_here(open_source(str(tree), spool=str(out.parent / "spool")), str(out), **settings)


def same_files(one: Path, other: Path) -> None:
    """Fails unless two data sets have the same bytes, but for what no digest covers."""
    found, expected = ({k: v for k, v in tree_files(p).items() if k not in _TIMES} for p in (one, other))
    assert set(found) == set(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    for name in _TIMES:
        assert (one / name).exists() == (other / name).exists()


def odd_images(tree: Path) -> None:
    """Adds to a tree a grey image, an empty file, text, and a duplicate in the other split."""
    grey = io.BytesIO()
    Image.open(io.BytesIO(jpeg(7, 60, 50))).convert("L").save(grey, format="JPEG")
    (tree / "train/cow/grey.jpg").write_bytes(grey.getvalue())
    (tree / "train/ant/empty.jpg").write_bytes(b"")
    (tree / "val/bee/text.jpg").write_bytes(b"I am text" * 30)
    shutil.copy(tree / "train/cow/003.jpg", tree / "val/cow/twice.jpg")


@pytest.mark.parametrize(
    "handling", [ImageHandling(), ImageHandling("header"), ImageHandling(shorter_side_px=16)], ids=str
)
def test_a_compacted_version_has_the_bytes_of_a_full_ingest(tmp_path: Path, handling: ImageHandling) -> None:
    tree = make_tree(tmp_path / "tree", per_class=17)
    odd_images(tree)
    full(tree, tmp_path / "v1", shard_size=9000, handling=handling)
    (tree / "train/ant/000.jpg").unlink()
    (tree / "val/cow/002.jpg").write_bytes(jpeg(4711))
    (tree / "train/bee/new.jpg").write_bytes(jpeg(4712))
    (tree / "train/aphid").mkdir()
    (tree / "train/aphid/one.jpg").write_bytes(jpeg(4713))
    (tree / "val/aphid").mkdir()
    (tree / "val/aphid/one.jpg").write_bytes(jpeg(4714))
    (tree / "val/aphid/bad.jpg").write_bytes(jpeg(4715)[:300])
    ingest(tree, tmp_path / "v2", onto=tmp_path / "v1")
    full(tree, tmp_path / "full", shard_size=9000, handling=handling)
    data = compact(tmp_path / "v2", tmp_path / "v3")
    assert data.manifest == open_dataset(tmp_path / "full").manifest
    same_files(tmp_path / "v3", tmp_path / "full")
    assert verify_dataset(tmp_path / "v3") == []


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chain=st.lists(
        st.lists(st.tuples(st.sampled_from(["add", "remove", "change", "spoil"]), st.integers(0, 2**32)), max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_compaction_of_any_chain_has_the_bytes_of_a_full_ingest(
    chain: list[list[tuple[str, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("chain")
    tree = make_tree(tmp_path / "tree", per_class=7)
    full(tree, tmp_path / "v0", shard_size=4000)
    for number, changes in enumerate(chain, 1):
        for what, draw in changes:
            change(tree, what, draw)
        ingest(tree, tmp_path / f"v{number}", onto=tmp_path / f"v{number - 1}")
    full(tree, tmp_path / "full", shard_size=4000)
    compact(tmp_path / f"v{len(chain)}", tmp_path / "compacted")
    same_files(tmp_path / "compacted", tmp_path / "full")
    shutil.rmtree(tmp_path)


def change(tree: Path, what: str, draw: int) -> None:
    """Adds, removes, changes or spoils an image of the tree."""
    classes = sorted(tree.glob("*/*"))
    folder = classes[draw % len(classes)]
    images = sorted(folder.iterdir())
    image = images[draw // 7 % len(images)]
    if what == "add":
        (folder / f"{draw % 1000:03d}-new.jpg").write_bytes(jpeg(draw, 20 + draw % 9))
    elif what == "remove" and len(images) > 4:
        image.unlink()
    elif what == "change":
        image.write_bytes(jpeg(draw, 24))
    elif what == "spoil" and len(images) > 4:
        image.write_bytes(image.read_bytes()[:200])
    # The clock of the disk may not have moved since the last ingest listed the source.
    for path in folder.iterdir():
        os.utime(path)


def test_a_chain_of_versions_without_state_is_compacted_all_the_same(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=17)
    full(tree, tmp_path / "v1", shard_size=9000)
    (tree / "train/bee/new.jpg").write_bytes(jpeg(4712))
    (tree / "train/ant/000.jpg").unlink()
    ingest(tree, tmp_path / "v2", onto=tmp_path / "v1")
    full(tree, tmp_path / "full", shard_size=9000)
    shutil.rmtree(tmp_path / "v2" / "_state")
    assert compact(tmp_path / "v2", tmp_path / "v3").manifest == open_dataset(tmp_path / "full").manifest


def rows_of(uri: str) -> dict[str, dict[str, tuple[str, bytes]]]:
    data = manifest.load(uri)
    found = {}
    for name, split in data.splits.items():
        rows = parquet.read_rows(uri, split, np.arange(split.rows)).to_pylist()
        found[name] = {row["key"]: (data.classes[row["label"]], row["image"]) for row in rows}
    return found


def test_what_people_have_corrected_stays_so(family: Path) -> None:
    expected = rows_of(str(family / "v3"))
    compact(family / "v3", family / "v4")
    assert rows_of(str(family / "v4")) == expected
    version = manifest.load_stored(str(family / "v4")).version
    assert version is not None
    assert (version.parent, version.bases, version.deletions) == ("", {}, None)
    assert verify_dataset(family / "v4") == []


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """v1 of the source `tree`, v2 of which people have removed two images and relabelled two, v3 after it has grown."""
    tree = make_tree(tmp_path / "tree", per_class=17)
    full(tree, tmp_path / "v1", shard_size=9000)
    verdicts = [
        "train/ant/003.jpg,remove",
        "train/cow/005.jpg,remove",
        "train/ant/001.jpg,bee",
        "train/bee/001.jpg,keep",
    ]
    (tmp_path / "verdicts.csv").write_text("\n".join(["key,verdict", *verdicts]))
    correct(tmp_path / "verdicts.csv", tmp_path / "v1", tmp_path / "v2")
    (tree / "train/bee/new.jpg").write_bytes(jpeg(4712))
    (tree / "train/ant/000.jpg").unlink()
    ingest(tree, tmp_path / "v3", onto=tmp_path / "v2")
    return tmp_path


def test_a_compacted_version_remembers_what_people_have_said(corrected: Path) -> None:
    """The next ingest undoes nothing; a full ingest's shards are the same but for labels that people have set."""
    before = manifest.load_stored(str(corrected / "v3"))
    said = edits_by_people(str(corrected / "v3"), before)
    assert len(said) == 4
    compact(corrected / "v3", corrected / "v4")
    after = manifest.load_stored(str(corrected / "v4"))
    assert edits_by_people(str(corrected / "v4"), after) == said
    assert rows_of(str(corrected / "v4")) == rows_of(str(corrected / "v3"))
    assert verify_dataset(corrected / "v4") == []
    for name in ("v3", "v4"):
        split = manifest.load(str(corrected / name)).split("train")
        keys = parquet.read_split_provenance(str(corrected / name), split, ["key"])["key"].to_pylist()
        rows = reviewed_rows(str(corrected / name), split).tolist()
        assert [keys[row] for row in rows] in (
            [[one, other] for one, other in permutations(("train/ant/001.jpg", "train/bee/001.jpg"))]
        )
    for name in ("v1", "v2", "v3"):
        drop_version(corrected / name)
    (corrected / "tree/val/ant/new.jpg").write_bytes(jpeg(5))
    ingest(corrected / "tree", corrected / "v5", onto=corrected / "v4")
    assert rows_of(str(corrected / "v5"))["train"] == rows_of(str(corrected / "v4"))["train"]
    assert edits_by_people(str(corrected / "v5"), manifest.load_stored(str(corrected / "v5"))) == said
    with pytest.raises(DatasetError, match="refers to no other data set already"):
        compact(corrected / "v4", corrected / "v7")
    compact(corrected / "v5", corrected / "v7")
    assert edits_by_people(str(corrected / "v7"), manifest.load_stored(str(corrected / "v7"))) == said
    listed = {each.name: each for each in list_versions(corrected)}
    assert (listed["v7"].parent, listed["v7"].relabelled, listed["v7"].rows) == ("", 0, listed["v7"].added)


def test_the_shards_of_a_compacted_version_are_those_of_a_full_ingest_also_where_people_removed_images(
    corrected: Path,
) -> None:
    full(corrected / "tree", corrected / "full", shard_size=9000)
    compact(corrected / "v3", corrected / "v4")
    names = [name for name in tree_files(corrected / "full") if name.startswith("train/")]
    same = [(corrected / "v4" / name).read_bytes() == (corrected / "full" / name).read_bytes() for name in names]
    data = manifest.load(str(corrected / "v4"))
    assert [shard.path for shard in data.split("train").shards] == sorted(names)
    assert same.count(False) <= 1  # the shard of the label that a person has set
    assert sum(sum(shard.deleted) for shard in data.split("train").shards) == 2


def test_a_removal_for_good_of_what_a_person_removed_reaches_the_compacted_version(corrected: Path) -> None:
    compact(corrected / "v3", corrected / "v4")
    shutil.rmtree(corrected / "tree")  # it would be searched, too
    before = rows_of(str(corrected / "v4"))
    assert forget(corrected, ["train/ant/003.jpg"]).rows == ("train/ant/003.jpg",)
    assert rows_of(str(corrected / "v4")) == before
    stored = manifest.load_stored(str(corrected / "v4"))
    assert "train/ant/003.jpg" not in {key for key, _, _ in edits_by_people(str(corrected / "v4"), stored)}
    assert verify_dataset(corrected / "v4") == []


def test_a_compaction_that_is_interrupted_goes_on(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = stored_rows.write_stored
    left = 4

    def failing(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return written(*arguments)

    compact(family / "v3", family / "whole")
    monkeypatch.setattr(compaction, "write_stored", failing)
    monkeypatch.setattr("pipeline.cluster.ray_tasks.usable_cpus", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        compact(family / "v3", family / "v4")
    assert not manifest.is_dataset(str(family / "v4"))
    left = 100
    compact(family / "v3", family / "v4")
    assert left >= 100 - 6
    same_files(family / "v4", family / "whole")


def test_a_changed_byte_ends_a_compaction(family: Path) -> None:
    index = load_index(str(family / "v3"), manifest.load(str(family / "v3")).splits["train"])
    path = Path(index.paths[0])
    data = bytearray(path.read_bytes())
    data[int(index.offset[0]) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="not the bytes that were ingested"):
        compact(family / "v3", family / "v4")


def test_a_version_that_is_dropped_meanwhile_is_not_published(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = publish.dataset_card

    def dropping(*arguments: Any) -> Any:
        drop_version(family / "v3")
        return written(*arguments)

    monkeypatch.setattr(publish, "dataset_card", dropping)
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        compact(family / "v3", family / "v4")
    assert not manifest.is_dataset(str(family / "v4"))


def test_what_needs_no_compaction_or_can_not_be_compacted_is_refused(family: Path) -> None:
    mix({"old": str(family / "v1"), "new": str(family / "v3")}, str(family / "mixed"))
    for name, message in (
        ("v1", "refers to no other data set already; copy its folder instead"),
        ("mixed", "is a mixture"),
        ("nothere", r"no manifest\.json"),
    ):
        with pytest.raises(DatasetError, match=message):
            compact(family / name, family / "out")
    with pytest.raises(DatasetError, match="holds a finished data set already"):
        compact(family / "v2", family / "v3")
    assert not (family / "out").exists()


def test_versions_in_a_bucket_are_compacted(family: Path, s3: str) -> None:
    for name in ("v1", "v2", "v3"):
        copied(str(family / name), f"{s3}/compact/{name}")
    there = compact(f"{s3}/compact/v3", f"{s3}/compact/v4").manifest
    assert there == compact(family / "v3", family / "v4").manifest
    assert not [name for name, _ in files.list_files(f"{s3}/compact/v4") if name.startswith("_ingest")]
