"""What lies beside the versions of a data set: which files were removed for good."""

from pathlib import Path

import pytest

from pipeline.core.errors import StorageError
from pipeline.dataset.version import folder_of_versions
from pipeline.ingestion.changes.removed import removed_json, removed_sources

QUERY = "?endpoint_override=127.0.0.1:9000&scheme=http"


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/data/photos/v1", "/data/photos"),
        ("/v1", "/"),
        ("/data/a?b/v1", "/data/a?b"),
        ("s3://bucket/photos/v1", "s3://bucket/photos"),
        ("s3://bucket/v1", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        (f"s3://bucket/photos/v1{QUERY}", f"s3://bucket/photos{QUERY}"),
        (f"s3://bucket{QUERY}", f"s3://bucket{QUERY}"),
    ],
)
def test_the_folder_that_the_versions_lie_in(uri: str, folder: str) -> None:
    assert folder_of_versions(uri) == folder


def test_the_list_of_removed_files_reads_as_it_was_written(tmp_path: Path) -> None:
    assert removed_sources(str(tmp_path)) == frozenset()
    digests = frozenset({bytes(range(32)), bytes(32)})
    (tmp_path / "removed.json").write_bytes(removed_json(digests))
    assert removed_sources(str(tmp_path)) == digests


@pytest.mark.parametrize(
    "text",
    ['["mine"]', "{}", "3", '{"source_sha256": 3}', '{"source_sha256": ["zz"]}', '{"source_sha256": ["00ff"]}', "{"],
)
def test_a_damaged_list_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "removed.json").write_text(text)
    with pytest.raises(StorageError, match=r"removed\.json: damaged: [^\n]+; restore the file"):
        removed_sources(str(tmp_path))
