from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.storage import files


def test_of_many_racing_writers_one_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "manifest.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda writer: files.write_once(uri, bytes([writer])), range(16)))
    assert won.count(True) == 1
    assert files.read_bytes(uri) == bytes([won.index(True)])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["manifest.json"]


def test_write_bytes_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "a" / "b")
    files.write_bytes(uri, b"old")
    files.write_bytes(uri, b"new")
    assert files.read_bytes(uri) == b"new"
    assert files.list_files(str(tmp_path)) == [("a/b", 3)]


@pytest.mark.parametrize(
    "uri", ["s3://key:secret@bucket/path", "s3://bucket/x?access_key=a&secret_key=b", "ftp://host/x"]
)
def test_credentials_and_unknown_schemes_are_refused_without_being_repeated(uri: str) -> None:
    with pytest.raises(PipelineError) as caught:
        files.absolute(uri)
    assert "secret@" not in str(caught.value)
    assert "secret_key=b" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("/a/b", "/a/b/c/d"),
        ("s3://bucket/a", "s3://bucket/a/c/d"),
        ("s3://bucket/a?endpoint_override=h:1", "s3://bucket/a/c/d?endpoint_override=h:1"),
    ],
)
def test_join(uri: str, joined: str) -> None:
    assert files.join(uri, "c", "d") == joined


def test_absolute_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.absolute("x/../y") == str(tmp_path / "y")
    assert files.absolute(f"file://{tmp_path}/y") == str(tmp_path / "y")


def test_a_fingerprint_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = files.fingerprint(str(tmp_path))
    assert files.fingerprint(str(tmp_path)) == before
    (tmp_path / "b").write_bytes(b"2")
    assert files.fingerprint(str(tmp_path)) != before
