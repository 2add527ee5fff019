"""Versions: a chain of data sets over shared shards reads as the rows that are left, whoever reads them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DatasetError
from pipeline.core.keyed_random import key_hash
from pipeline.dataset import edits, manifest, parquet
from pipeline.dataset.mixture import mix
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.dataset.version import Changes
from pipeline.ingestion.sources import open_source
from pipeline.ingestion.verify import verify_dataset
from pipeline.loader import Loader
from tests.support.pictures.datasets import copied, ingest_here
from tests.support.pictures.images import make_tree
from tests.support.pictures.versions import corrections, deletions, make_version

Row = tuple[str, str, bytes]  # key, class, image


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set in several shards and row groups, and another one with the same classes and other keys."""
    folder = tmp_path_factory.mktemp("parts")
    made = []
    for number, per_class in enumerate((20, 8)):
        index = open_source(str(make_tree(folder / f"tree{number}", per_class)), spool=str(folder))
        splits = {
            name: table.set_column(0, "key", [[f"{number}/{key}" for key in table["key"].to_pylist()]])
            for name, table in index.splits.items()
        }
        out = str(folder / f"data{number}")
        ingest_here(replace(index, splits=splits), out, shard_size=20_000)
        made.append(out)
    return made[0], made[1]


def rows_of(uri: str, split: str = "train") -> list[Row]:
    data = manifest.load(uri)
    table = parquet.read_rows(uri, data.split(split), np.arange(data.split(split).rows))
    classes = [data.classes[label] for label in table["label"].to_pylist()]
    return [*zip(table["key"].to_pylist(), classes, table["image"].to_pylist(), strict=True)]


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[list[float], list[tuple[float, str]], bool]]:
    """Returns for each version: places of rows to delete, (place, class) to relabel, and whether rows are added."""
    place = st.floats(0, 0.999)
    deleted = st.one_of(st.lists(place, max_size=5), st.lists(place, min_size=40, max_size=60))
    relabelled = st.lists(st.tuples(place, st.sampled_from(["ant", "bee", "cow"])), max_size=6)
    return draw(st.lists(st.tuples(deleted, relabelled, st.booleans()), min_size=1, max_size=3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chain=chains())
def test_every_reader_of_a_chain_of_versions_sees_the_rows_that_are_left(
    parts: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, chain: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(parts[0], folder / "v0")
    expected = rows_of(str(folder / "v0"))
    is_added = False
    for number, (deleted, relabelled, add) in enumerate(chain, 1):
        gone = {int(place * len(expected)): "gone" for place in deleted}
        gone.pop(0, None)  # a split keeps a row
        changed = {int(place * len(expected)): name for place, name in relabelled}
        add, is_added = add and not is_added, is_added or add
        more = parts[1] if add else None
        changes = {"train": Changes(deletions(gone), corrections(changed))}
        make_version(str(folder / f"v{number - 1}"), str(folder / f"v{number}"), changes, more)
        expected = [
            (key, changed.get(row, name), image) for row, (key, name, image) in enumerate(expected) if row not in gone
        ]
        expected += rows_of(parts[1]) if add else []
        check_rows(str(folder / f"v{number}"), expected)
    shutil.move(folder, moved := folder.with_name(f"{folder.name}-moved"))  # references are relative
    check_rows(str(moved / f"v{len(chain)}"), expected)
    shutil.rmtree(moved)


def check_rows(uri: str, expected: list[Row]) -> None:
    """Fails unless each way to read the training rows gives `expected`."""
    data = manifest.load(uri)
    split, labels = data.split("train"), [data.classes.index(name) for _, name, _ in expected]
    assert split.rows == sum(split.row_group_rows) == len(expected)
    assert split.rows_per_class == tuple(np.bincount(labels, minlength=3))
    assert rows_of(uri) == expected
    order = np.random.default_rng(0).permutation(len(expected))
    keys = parquet.read_rows(uri, split, order, ("key",))["key"].to_pylist()
    assert keys == [expected[row][0] for row in order]
    provenance = parquet.read_split_provenance(uri, split, ["key", "label"])
    assert provenance["key"].to_pylist() == [key for key, _, _ in expected]
    assert provenance["label"].to_pylist() == labels
    assert parquet.find_rows(uri, split, [expected[-1][0]]).tolist() == [len(expected) - 1]
    index = load_index(uri, split)
    assert index.label.tolist() == labels
    assert [bytes(image) for image in read_images(index, order)] == [expected[row][2] for row in order]
    assert verify_dataset(uri) == []


def epoch(uri: str, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    loader = Loader(uri, split="train", global_batch_size=8, size_px=16, seed=3, rank=rank, world_size=world_size)
    return [pair for batch in loader for pair in zip(batch.keys.tolist(), batch.labels.tolist(), strict=True)]


@pytest.fixture
def version(parts: tuple[str, str], tmp_path: Path) -> str:
    """v1 of a data set: without rows 1, 2 and 50, with row 3 as a cow, and with more rows."""
    shutil.copytree(parts[0], tmp_path / "v0")
    changes = {"train": Changes(deletions({1: "gone", 2: "gone", 50: "gone"}), corrections({3: "cow"}))}
    make_version(str(tmp_path / "v0"), str(tmp_path / "v1"), changes, parts[1])
    return str(tmp_path / "v1")


def test_an_epoch_has_every_row_that_is_left_once_with_its_class(version: str) -> None:
    data = manifest.load(version)
    rows = rows_of(version)
    hashes = key_hash([key for key, _, _ in rows]).tolist()
    expected = sorted(zip(hashes, [data.classes.index(name) for _, name, _ in rows], strict=True))
    assert sorted(epoch(version)) == expected
    assert sorted(epoch(version, 0, 2) + epoch(version, 1, 2)) == expected


def test_versions_in_a_bucket_read_as_on_a_disk(version: str, s3: str) -> None:
    expected = rows_of(version)
    for name in ("v0", "v1"):
        copied(str(Path(version).parent / name), f"{s3}/chain/{name}")
    assert rows_of(f"{s3}/chain/v1") == expected
    check_rows(f"{s3}/chain/v1", expected)


def test_a_version_has_the_digest_of_its_content_wherever_its_bases_lie(
    version: str, parts: tuple[str, str], tmp_path: Path
) -> None:
    digest = manifest.load(version).digest
    shutil.copytree(tmp_path / "v0", tmp_path / "elsewhere" / "base")
    changes = {"train": Changes(deletions({1: "gone", 2: "gone", 50: "gone"}), corrections({3: "cow"}))}
    made = make_version(str(tmp_path / "elsewhere" / "base"), str(tmp_path / "copy"), changes, parts[1])
    assert made.digest == digest


def test_a_mixture_of_versions_has_their_rows(version: str, parts: tuple[str, str], tmp_path: Path) -> None:
    mix({"new": version, "more": parts[1]}, str(tmp_path / "mixed"))
    expected = [(f"new/{key}", name, image) for key, name, image in rows_of(version)]
    expected += [(f"more/{key}", name, image) for key, name, image in rows_of(parts[1])]
    check_rows(str(tmp_path / "mixed"), expected)


def test_labels_are_mapped_by_the_names_of_classes(parts: tuple[str, str], tmp_path: Path) -> None:
    shutil.copytree(parts[0], tmp_path / "v0")
    bees = [row for row, (_, name, _) in enumerate(rows_of(parts[0])) if name == "bee"]
    val = [row for row, (_, name, _) in enumerate(rows_of(parts[0], "val")) if name == "bee"]
    rest = {
        "train": Changes(deletions(dict.fromkeys(bees, "gone"))),
        "val": Changes(corrected=corrections(dict.fromkeys(val, "aphid"))),
    }
    made = make_version(str(tmp_path / "v0"), str(tmp_path / "v1"), rest, classes=("ant", "aphid", "cow"))
    assert made.splits["train"].rows_per_class == (20, 0, 20)
    assert made.splits["val"].rows_per_class == (20, 20, 20)
    assert {name for _, name, _ in rows_of(str(tmp_path / "v1"))} == {"ant", "cow"}
    with pytest.raises(DatasetError, match="of a class that the version lacks"):
        make_version(str(tmp_path / "v0"), str(tmp_path / "v2"), {}, classes=("ant", "cow"))


def test_a_version_of_a_mixture_is_refused(version: str, parts: tuple[str, str], tmp_path: Path) -> None:
    mix({"new": version, "more": parts[1]}, str(tmp_path / "mixed"))
    with pytest.raises(DatasetError, match="is a mixture"):
        make_version(str(tmp_path / "mixed"), str(tmp_path / "v2"), {})


@pytest.mark.parametrize("name", [edits.DELETIONS_NAME, edits.CORRECTIONS_NAME])
def test_an_edit_file_that_was_changed_or_lost_is_named(version: str, tmp_path: Path, name: str) -> None:
    shutil.move(
        tmp_path, moved := tmp_path.with_name(f"{tmp_path.name}-moved")
    )  # what was read of the first place is remembered
    version, place = str(moved / "v1"), moved / "v1" / name
    data = place.read_bytes()
    place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DatasetError, match=rf"{name}: edited or damaged"):
        rows_of(version)
    place.unlink()
    with pytest.raises(DatasetError, match=rf"{name}: is missing"):
        rows_of(version)


def test_earlier_programs_refuse_a_version_instead_of_reading_deleted_rows(version: str) -> None:
    values = json.loads((Path(version) / "manifest.json").read_text())
    assert values["schema_version"] == manifest.VERSION_SCHEMA_VERSION
