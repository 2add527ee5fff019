"""The index of a small source, for the tests of ingestion."""

from pathlib import Path

import pytest

from pipeline.ingestion.sources import Index, open_source
from tests.support.pictures.images import make_tree


@pytest.fixture
def tree_index(tmp_path: Path) -> Index:
    """The index of 3 x 17 train and 3 x 17 val JPEGs in class folders at `tmp_path / "tree"`."""
    return open_source(str(make_tree(tmp_path / "tree", per_class=17)), spool=str(tmp_path / "spool"))
