import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest, open_dataset, parquet
from pipeline.dataset.mixture import mix
from pipeline.dataset.version import Changes
from pipeline.versions.sql import duckdb_views
from tests.support.pictures.versions import corrections, deletions, make_version

Row = tuple[str, int, str, bytes, int, int]


def in_duckdb(uri: str | Path, split: str) -> list[Row]:
    with duckdb.connect() as connection:
        connection.execute(duckdb_views(uri))
        return sorted(connection.sql(f'SELECT key, label, class, image, height, width FROM "{split}"').fetchall())


def expected(uri: str | Path, split: str) -> list[Row]:
    data = manifest.load(str(uri))
    rows = data.split(split)
    columns = ("key", "label", "image", "height", "width")
    table = parquet.read_rows(str(uri), rows, np.arange(rows.rows), columns).to_pylist()
    return sorted((r["key"], r["label"], data.classes[r["label"]], r["image"], r["height"], r["width"]) for r in table)


@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_duckdb_sees_the_rows_of_a_version(family: Path, name: str, split: str) -> None:
    assert in_duckdb(family / name, split) == expected(family / name, split)


def test_labels_are_those_of_the_version_where_its_classes_are_others(family: Path) -> None:
    data = open_dataset(family / "v1")
    bees = np.flatnonzero(data["train"].labels == 1).tolist()
    val = np.flatnonzero(data["val"].labels == 1).tolist()
    changes = {
        "train": Changes(deletions(dict.fromkeys(bees, "gone"))),
        "val": Changes(corrected=corrections(dict.fromkeys(val, "aphid"))),
    }
    make_version(str(family / "v1"), str(family / "w"), changes, classes=("aphid", "ant", "cow"))
    for split in ("train", "val"):
        assert in_duckdb(family / "w", split) == expected(family / "w", split)


def test_a_mixture_of_versions_has_the_keys_of_its_sources(family: Path) -> None:
    mix({"old": str(family / "v1"), "new": str(family / "v3")}, str(family / "mixed"))
    assert in_duckdb(family / "mixed", "train") == expected(family / "mixed", "train")


def test_odd_names_of_folders_are_quoted(family: Path) -> None:
    odd = family.parent / 'it\'s "odd"'
    shutil.copytree(family, odd)
    assert in_duckdb(odd / "v3", "val") == expected(odd / "v3", "val")


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        duckdb_views(tmp_path)


def test_a_split_may_have_corrected_rows_alone(family: Path) -> None:
    data = open_dataset(family / "v1")
    changes = {
        name: Changes(corrected=corrections(dict.fromkeys(range(len(data[name])), "aphid")))
        for name in ("train", "val")
    }
    make_version(str(family / "v1"), str(family / "w"), changes, classes=("aphid",))
    assert in_duckdb(family / "w", "train") == expected(family / "w", "train")
