"""Three versions of a small data set, for the tests of what is done with versions."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.version import Changes
from pipeline.ingestion.sources import open_source
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree, write_tree
from tests.support.pictures.versions import corrections, deletions, make_version


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with v1, v2 and v3, to be copied. v1: 3 x 17 train and 3 x 17 val images in several shards.

    v2: v1 without its training rows 0 and 20, row 3 a cow, and 6 more images of train and val each.
    v3: v2 without its training row 1, and row 3 a bee.
    """
    tmp_path = tmp_path_factory.mktemp("versions")
    folder = tmp_path / "photos"
    tree = make_tree(tmp_path / "tree", per_class=17)
    ingest_here(open_source(str(tree), spool=str(tmp_path / "spool")), str(folder / "v1"), shard_size=9000)
    more = {f"{split}/{name}/new{n}.jpg": jpeg(hash_of(split, name, n)) for split in ("train", "val")
            for name in ("ant", "bee", "cow") for n in range(2)}  # fmt: skip
    index = open_source(str(write_tree(tmp_path / "more", more)), spool=str(tmp_path / "spool"))
    ingest_here(index, str(tmp_path / "new"), shard_size=9000)
    changes = Changes(deletions({0: "gone", 20: "gone"}), corrections({3: "cow"}))
    make_version(str(folder / "v1"), str(folder / "v2"), {"train": changes}, str(tmp_path / "new"))
    changes = Changes(deletions({1: "gone"}), corrections({2: "bee"}))
    make_version(str(folder / "v2"), str(folder / "v3"), {"train": changes})
    return folder


@pytest.fixture
def copies(template: Path, tmp_path: Path) -> Callable[[], Path]:
    """Returns a function that makes a new copy of `template`."""
    count = itertools.count()
    return lambda: shutil.copytree(template, tmp_path / f"copy{next(count)}" / "photos")


@pytest.fixture
def family(template: Path, tmp_path: Path) -> Path:
    """A copy of `template`, called photos."""
    return shutil.copytree(template, tmp_path / "photos")


def hash_of(split: str, name: str, number: int) -> int:
    return 50_000 + 1000 * len(split) + 100 * ord(name[0]) + number
