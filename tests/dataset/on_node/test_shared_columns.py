"""Columns that the processes of a node share: computed once, and in memory where they can't be shared."""

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DatasetError
from pipeline.dataset import manifest, row_reader
from pipeline.dataset.cache_folder import use
from pipeline.dataset.on_node import shared_columns
from pipeline.dataset.on_node.shared_columns import Columns, load_columns
from pipeline.dataset.row_reader import RowIndex, load_index, read_images

LAYOUT = {"wide": "int64", "narrow": "uint32"}
ROWS = 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and every column large enough to be shared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shared_columns, "SHARED_BYTES", 1)
    shared_columns._warn_once.cache_clear()
    forget()
    return tmp_path / "cache"


def forget() -> None:
    """What this process has loaded; another process would begin so."""
    row_reader._load.cache_clear()
    row_reader._load_content.cache_clear()


def parts() -> Iterator[Columns]:
    first, rest = np.arange(300), np.arange(300, ROWS)
    yield {"wide": first, "narrow": first}
    yield {"wide": first[:0], "narrow": first[:0]}
    yield {"wide": rest * 2**40, "narrow": rest + 2**31}


def never() -> Iterator[Columns]:
    pytest.fail("computed again")
    yield {}


def assert_right(columns: Columns) -> None:
    rows = np.arange(ROWS)
    assert np.array_equal(columns["wide"], np.where(rows < 300, rows, rows * 2**40))
    assert np.array_equal(columns["narrow"], np.where(rows < 300, rows, rows + 2**31))
    assert [columns[name].dtype.name for name in LAYOUT] == [*LAYOUT.values()]


def test_columns_are_computed_once_and_mapped() -> None:
    columns, path = load_columns("a", LAYOUT, ROWS, parts)
    assert_right(columns)
    assert os.path.getsize(path) == ROWS * 12
    again, same = load_columns("a", LAYOUT, ROWS, never)
    assert_right(again)
    assert same == path
    assert np.shares_memory(columns["wide"], again["wide"])
    with pytest.raises(ValueError, match="read-only"):
        again["wide"][0] = 1


def test_other_contents_have_other_files() -> None:
    _, first = load_columns("a", LAYOUT, ROWS, parts)
    _, second = load_columns("b", LAYOUT, ROWS, parts)
    assert first != second


def test_columns_of_another_layout_or_version_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = load_columns("a", LAYOUT, ROWS, parts)
    turned, other = load_columns("a", dict(reversed(LAYOUT.items())), ROWS, parts)
    assert other != path
    assert_right({name: turned[name] for name in LAYOUT})
    monkeypatch.setattr(shared_columns, "_VERSION", shared_columns._VERSION + 1)
    assert load_columns("a", LAYOUT, ROWS, parts)[1] not in (path, other)


def test_columns_are_on_the_disk_before_their_file_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = list[tuple[str, int]](), os.fsync

    def noting(file: int) -> None:
        sync(file)
        synced.append((os.readlink(f"/proc/self/fd/{file}"), os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", noting)
    _, path = load_columns("a", LAYOUT, ROWS, parts)
    assert synced == [(f"{path}.tmp", ROWS * 12)]


def test_small_columns_are_in_memory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_columns, "SHARED_BYTES", ROWS * 12 + 1)
    columns, path = load_columns("a", LAYOUT, ROWS, parts)
    assert_right(columns)
    assert path == ""
    assert not cache.exists()


def test_columns_are_in_memory_where_the_folder_cannot_be_written(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "image-pipeline").mkdir(parents=True)
    (cache / "image-pipeline" / "columns").write_text("a file")
    with caplog.at_level(logging.WARNING):
        for content in ("a", "b"):
            columns, path = load_columns(content, LAYOUT, ROWS, parts)
            assert_right(columns)
            assert path == ""
    assert len(caplog.records) == 1
    assert "own memory" in caplog.text


def test_columns_are_in_memory_where_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.dataset.cache_folder.RESERVED_BYTES", 1 << 62)
    with caplog.at_level(logging.WARNING):
        columns, path = load_columns("a", LAYOUT, ROWS, parts)
    assert_right(columns)
    assert path == ""
    assert "no room" in caplog.text


def test_what_nobody_uses_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_columns, "FOLDER_BYTES", ROWS * 20)
    old = multiprocessing.get_context("fork").Process(target=load_columns, args=("old", LAYOUT, ROWS, parts))
    old.start()
    old.join()
    folder = Path(os.environ["XDG_CACHE_HOME"], "image-pipeline", "columns")
    assert [path.stat().st_size for path in folder.glob("*/0")] == [ROWS * 12]
    columns, path = load_columns("new", LAYOUT, ROWS, parts)
    assert_right(columns)
    assert [str(each) for each in folder.glob("*/0")] == [path]


def slow() -> Iterator[Columns]:
    yield from parts()
    time.sleep(60)


def test_nobody_waits_for_a_process_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = multiprocessing.get_context("fork").Process(target=load_columns, args=("a", LAYOUT, ROWS, slow))
    process.start()
    folder = Path(os.environ["XDG_CACHE_HOME"], "image-pipeline", "columns")
    while not list(folder.glob("*/0.tmp")):
        time.sleep(0.01)
    monkeypatch.setattr("pipeline.dataset.cache_folder.PATIENCE_SECONDS", 0.5)
    with caplog.at_level(logging.WARNING):
        columns, path = load_columns("a", LAYOUT, ROWS, parts)
    process.kill()
    process.join()
    assert_right(columns)
    assert path == ""
    assert "hangs" in caplog.text


def test_one_process_takes_over_from_one_that_is_killed() -> None:
    process = multiprocessing.get_context("fork").Process(target=load_columns, args=("a", LAYOUT, ROWS, slow))
    process.start()
    folder = Path(os.environ["XDG_CACHE_HOME"], "image-pipeline", "columns")
    while not list(folder.glob("*/0.tmp")):
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert_right(load_columns("a", LAYOUT, ROWS, parts)[0])


# --- the index of a data set's rows ------------------------------------------------------------------------------


def index_of(uri: str) -> RowIndex:
    return load_index(uri, manifest.load(uri).split("train"))


def assert_equal(first: RowIndex, second: RowIndex) -> None:
    assert first.paths == second.paths
    for name in ("offset", "length", "crc32", "label", "height", "width", "key_hash", "shard", "row_group_ends"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
        assert getattr(first, name).dtype == getattr(second, name).dtype, name


def test_a_second_process_reads_no_provenance(tree_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_of(tree_dataset)
    monkeypatch.setattr(shared_columns, "SHARED_BYTES", 1 << 30)
    forget()
    assert_equal(first, index_of(tree_dataset))  # the same as in memory
    monkeypatch.setattr(shared_columns, "SHARED_BYTES", 1)
    monkeypatch.setattr(row_reader, "read_shard_provenance", lambda *arguments: pytest.fail("read again"))
    forget()
    assert_equal(first, index_of(tree_dataset))


def test_a_copy_of_a_data_set_shares_the_file(tree_dataset: str, tmp_path: Path) -> None:
    shutil.copytree(tree_dataset, tmp_path / "copy")
    first, second = index_of(tree_dataset), index_of(str(tmp_path / "copy"))
    assert np.shares_memory(first.offset, second.offset)
    assert second.paths[0].startswith(str(tmp_path / "copy"))
    rows = np.arange(5)
    assert list(map(bytes, read_images(first, rows))) == list(map(bytes, read_images(second, rows)))


def test_an_index_goes_to_another_process_without_its_columns(tree_dataset: str) -> None:
    index = index_of(tree_dataset)
    data = pickle.dumps(index)
    assert index.offset.tobytes() not in data
    again = pickle.loads(data)  # noqa: S301
    assert_equal(index, again)
    assert np.shares_memory(index.offset, again.offset)


@pytest.mark.parametrize("shared_bytes", [1, 1 << 30])
def test_an_index_arrives_on_another_node(
    tree_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_bytes: int
) -> None:
    index = index_of(tree_dataset)
    data = pickle.dumps(index)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert index.file
    shutil.rmtree(Path(index.file.path).parent)
    monkeypatch.setattr(shared_columns, "SHARED_BYTES", shared_bytes)
    forget()
    assert_equal(index, pickle.loads(data))  # noqa: S301


def test_an_index_arrives_while_another_process_removes_its_file(
    tree_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_of(tree_dataset)
    data = pickle.dumps(index)

    def removed_before(subfolder: str) -> None:
        Path(subfolder, "0").unlink()
        monkeypatch.setattr(shared_columns, "use", use)
        use(subfolder)

    monkeypatch.setattr(shared_columns, "use", removed_before)
    forget()
    again = pickle.loads(data)  # noqa: S301
    assert_equal(index, again)
    assert again.file


def test_another_node_notices_that_the_data_set_was_replaced(
    tree_dataset: str, digits_dataset: str, tmp_path: Path
) -> None:
    place = tmp_path / "data"
    shutil.copytree(tree_dataset, place)
    index = index_of(str(place))
    data = pickle.dumps(index)
    assert index.file
    shutil.rmtree(Path(index.file.path).parent)
    shutil.rmtree(place)
    shutil.copytree(digits_dataset, place)
    forget()
    with pytest.raises(DatasetError, match="replaced by another"):
        pickle.loads(data)  # noqa: S301
