from collections.abc import Callable
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DatasetError
from pipeline.dataset import edits, manifest, parquet
from pipeline.dataset.mixture import mix
from pipeline.ingestion.target import WORK
from pipeline.ingestion.verify import verify_dataset
from pipeline.storage import files, lease
from pipeline.versions import drop
from pipeline.versions import family as family_of
from pipeline.versions.drop import drop_version
from pipeline.versions.removal.journal import Journal
from tests.support.pictures.datasets import copied
from tests.support.pictures.images import tree_files


def rows_of(uri: str) -> list[list[object]]:
    data = manifest.load(uri)
    return [
        parquet.read_rows(uri, split, np.arange(split.rows)).to_pylist() for _, split in sorted(data.splits.items())
    ]


@pytest.mark.parametrize("order", list(permutations(("v1", "v2", "v3"))))
def test_whatever_is_dropped_the_others_read_as_before_and_the_last_drop_leaves_nothing(
    family: Path, order: tuple[str, ...]
) -> None:
    expected = {name: rows_of(str(family / name)) for name in order}
    for number, name in enumerate(order):
        drop_version(family / name)
        with pytest.raises(DatasetError, match=r"no manifest\.json"):
            manifest.load(str(family / name))
        for other in order[number + 1 :]:
            assert rows_of(str(family / other)) == expected[other]
            assert verify_dataset(family / other) == []
    assert [name for name in tree_files(family) if not name.startswith("_versions/")] == []


def test_shards_that_another_version_needs_stay_and_everything_else_goes(family: Path) -> None:
    before = set(tree_files(family / "v1"))
    done = drop_version(family / "v1")
    left = set(tree_files(family / "v1"))
    shards = {name for name in before if name.startswith(("train/", "val/", "provenance/"))}
    assert left == {*shards, "dropped.json"}
    assert (done.kept_shards, done.needed_by) == (len(shards) // 2, ("v2", "v3"))
    assert done.deleted_files == len(before - shards - {"manifest.json"})  # which is dropped.json now
    done = drop_version(family / "v3")
    assert (done.kept_shards, done.needed_by) == (len(shards) // 2, ("v2",))
    done = drop_version(family / "v2")
    assert (done.kept_shards, done.needed_by) == (0, ())


def test_only_the_shards_that_are_needed_stay(family: Path) -> None:
    """A version that leaves out all rows of a shard doesn't refer to it."""
    from pipeline.dataset.version import Changes
    from tests.support.pictures.versions import deletions, make_version

    first = manifest.load(str(family / "v3")).splits["train"].shards[0]
    rows = dict.fromkeys(range(first.live_rows), "gone")
    make_version(str(family / "v3"), str(family / "v4"), {"train": Changes(deletions(rows))})
    for name in ("v1", "v2", "v3"):
        drop_version(family / name)
    assert not Path(first.path).exists()
    assert not (family / "v1" / Path(first.path).relative_to("../v1")).exists()
    assert (family / "v1").exists()
    assert verify_dataset(family / "v4") == []


def test_a_mixture_beside_the_versions_keeps_its_sources(family: Path) -> None:
    mix({"a": str(family / "v1"), "b": str(family / "v2")}, str(family / "mixed"))
    expected = rows_of(str(family / "mixed"))
    for name in ("v1", "v3"):
        drop_version(family / name)
    assert rows_of(str(family / "mixed")) == expected


def test_a_mixture_keeps_the_edits_of_a_source_that_is_dropped(family: Path) -> None:
    mix({"a": str(family / "v2"), "b": str(family / "v3")}, str(family / "mixed"))
    expected = rows_of(str(family / "mixed"))
    shards = {name for name in tree_files(family / "v2") if name.startswith(("train/", "val/"))}
    assert drop_version(family / "v2").kept_shards == len(shards)
    edits._deleted.cache_clear()  # as in a new process
    edits._corrected.cache_clear()
    assert rows_of(str(family / "mixed")) == expected
    assert {"deletions.parquet", "corrections.parquet"} < set(tree_files(family / "v2"))
    drop_version(family / "mixed")
    assert not {"deletions.parquet", "corrections.parquet"} & set(tree_files(family / "v2"))


def test_while_a_removal_of_images_is_interrupted_nothing_is_dropped(family: Path) -> None:
    (family / "_versions/forget").mkdir(parents=True)
    (family / "_versions/forget/plan.json").write_text('{"keys": []}')
    before = {name: tree_files(family / name) for name in ("v1", "v2", "v3")}
    with pytest.raises(DatasetError, match=r"images are being removed from its versions .*run it again"):
        drop_version(family / "v1")
    assert {name: tree_files(family / name) for name in before} == before


def test_while_versions_are_dropped_or_rid_of_images_none_is_mixed(family: Path, tmp_path: Path) -> None:
    """Neither beside the mixture nor beside a source elsewhere. Afterwards nothing is left but the mixture."""
    sources = {"a": str(family / "v1"), "b": str(family / "v2")}
    for out in (family / "mixed", tmp_path / "elsewhere/mixed"):
        held = lease.hold_lease(str(family / "_versions/lease.json"), str(family), ttl_seconds=0.6)
        with held, pytest.raises(DatasetError, match="another process is writing there now"):
            mix(sources, str(out))
        Journal(str(family)).begin(["train/ant/000.jpg"])
        with pytest.raises(DatasetError, match="images are being removed from its versions"):
            mix(sources, str(out))
        Journal(str(family)).end()
        assert not out.exists()
        mix(sources, str(out))
    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["mixed"]


def test_while_an_ingest_is_unfinished_no_shard_goes(family: Path) -> None:
    (family / "v4" / WORK).mkdir(parents=True)
    (family / "v4" / WORK / "lease.json").write_text("{}")
    shards = {name for name in tree_files(family / "v2") if name.startswith(("train/", "val/", "provenance/"))}
    drop_version(family / "v3")
    done = drop_version(family / "v2")
    assert (done.unfinished, done.kept_shards) == (("v4",), len(shards) // 2)
    assert set(tree_files(family / "v2")) == {*shards, "deletions.parquet", "corrections.parquet", "dropped.json"}
    files.delete_tree(str(family / "v4"))
    drop_version(family / "v2")
    assert not (family / "v2").exists()


def test_a_version_that_is_published_during_a_drop_keeps_its_shards(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an ingest ends before or after the drop looks at the folder, its version can be read."""
    from pipeline.dataset.version import Changes
    from tests.support.pictures.versions import make_version

    (family / "v4" / WORK).mkdir(parents=True)
    (family / "v4" / WORK / "lease.json").write_text("{}")
    unfinished = family_of.unfinished

    def publish_meanwhile(folder: str) -> list[str]:
        found = unfinished(folder)
        make_version(f"{family}/v2", f"{family}/v4", {"train": Changes()})
        return found

    drop_version(family / "v3")
    expected = rows_of(str(family / "v2"))
    manifest_of_v2 = (family / "v2" / "manifest.json").read_bytes()

    def delete_after(folder: str) -> list[str]:
        (family / "v2" / "manifest.json").write_bytes(manifest_of_v2)
        found = publish_meanwhile(folder)
        (family / "v2" / "manifest.json").unlink()
        return found

    monkeypatch.setattr(drop, "unfinished", delete_after)
    drop_version(family / "v2")
    assert rows_of(str(family / "v4")) == expected
    assert verify_dataset(family / "v4") == []


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["v1", "v2", "v3"]), calls=st.integers(0, 12))
def test_a_drop_that_is_interrupted_anywhere_goes_on(copies: Callable[[], Path], name: str, calls: int) -> None:
    family = copies()
    expected = {other: rows_of(str(family / other)) for other in {"v1", "v2", "v3"} - {name}}
    done, deleted = 0, files.delete_files

    def failing(uri: str, names: list[str]) -> None:
        nonlocal done
        if uri.rstrip("/").endswith("_versions"):  # the lease
            deleted(uri, names)
            return
        for each in names:
            if done == calls:
                raise KeyboardInterrupt
            done += 1
            deleted(uri, [each])

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(files, "delete_files", failing)
        drop_version(family / name)
    for other, rows in expected.items():
        assert rows_of(str(family / other)) == rows
    if (family / name).exists():
        drop_version(family / name)
    assert not (family / name / "manifest.json").exists()
    for other, rows in expected.items():
        assert rows_of(str(family / other)) == rows


def test_two_drops_at_a_time_wait_or_are_refused(family: Path) -> None:
    with (
        lease.hold_lease(f"{family}/_versions/lease.json", str(family)),
        pytest.raises(DatasetError, match="another process is writing there now"),
    ):
        drop_version(family / "v1")
    assert manifest.is_dataset(str(family / "v1"))


def test_what_is_no_version_is_refused(family: Path) -> None:
    for name in ("nothere", "v1/train"):
        with pytest.raises(DatasetError, match=r"no manifest\.json, so no version; `versions list \S+` names those"):
            drop_version(family / name)


def test_a_damaged_version_beside_it_stops_a_drop_before_anything_is_lost(family: Path) -> None:
    (family / "v3" / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"v3/manifest\.json: not a manifest"):
        drop_version(family / "v2")
    assert verify_dataset(family / "v2") == []


def test_versions_in_a_bucket_are_dropped(family: Path, s3: str) -> None:
    for name in ("v1", "v2", "v3"):
        copied(str(family / name), f"{s3}/dropped/{name}")
    expected = rows_of(str(family / "v3"))
    for name in ("v1", "v2"):
        done = drop_version(f"{s3}/dropped/{name}")
        assert done.needed_by
        assert rows_of(f"{s3}/dropped/v3") == expected
    drop_version(f"{s3}/dropped/v3")
    assert files.list_files(f"{s3}/dropped") == []
