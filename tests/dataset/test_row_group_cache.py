"""The cache of row groups: each fetched once, never more than its size, whatever is killed or damaged."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DatasetError, RecipeError, StorageError
from pipeline.dataset import cache_folder, manifest
from pipeline.dataset.cache_folder import CacheFolder, Claim, parse_size, resolve_cache
from pipeline.dataset.row_group_cache import RowGroupCache
from pipeline.dataset.row_reader import RowIndex, load_index, read_images
from pipeline.storage import files
from pipeline.storage.request_counts import RequestCounts, requests_sent
from tests.support.pictures.datasets import copied


@pytest.fixture(scope="module")
def remote(s3: str, tree_dataset: str) -> str:
    """The URI of a data set in a bucket."""
    return copied(tree_dataset, f"{s3}/cached")


def index_of(uri: str) -> RowIndex:
    return load_index(uri, manifest.load(uri).split("train"))


def with_cache(uri: str, folder: Path, max_bytes: int | None = None) -> RowIndex:
    split = manifest.load(uri).split("train")
    return replace(index_of(uri), cache=RowGroupCache.of(CacheFolder(str(folder), max_bytes), split))


def requests(call: Callable[[], object]) -> RequestCounts:
    before = requests_sent()
    call()
    return requests_sent().plus(before, -1)


def stored(folder: Path) -> list[Path]:
    """Returns the row groups below a cache's folder."""
    return sorted(path for path in folder.glob("*/*") if path.name.isdecimal())


def test_a_row_group_is_requested_once_and_cached(remote: str, tree_dataset: str, tmp_path: Path) -> None:
    """Many at a time; again only where a file was cut; the same bytes as from the disk, each row checked."""
    cached, rows, here = with_cache(remote, tmp_path), np.random.default_rng(1).permutation(51), index_of(tree_dataset)
    groups = len(cached.row_group_ends)

    def many() -> None:
        with ThreadPoolExecutor(8) as pool:
            for images in pool.map(lambda part: read_images(cached, part), np.array_split(rows, 8)):
                assert images
        assert read_images(cached, rows) == read_images(here, rows)

    assert requests(many).get == groups
    assert requests(many).total == 0
    kept = stored(tmp_path)
    assert len(kept) == groups
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    assert requests(many).get == 1


def test_a_damaged_row_group_is_healed(remote: str, tree_dataset: str, tmp_path: Path) -> None:
    cached, rows, here = with_cache(remote, tmp_path), np.arange(51), index_of(tree_dataset)
    read_images(cached, rows)
    for path in stored(tmp_path):
        path.write_bytes(bytes(len(path.read_bytes())))
    for _ in range(2):
        assert read_images(cached, rows) == read_images(here, rows)
    assert requests(lambda: read_images(cached, rows)).total == 0
    assert not [path for path in stored(tmp_path) if path.read_bytes().count(0) == len(path.read_bytes())]
    broken = replace(cached, crc32=cached.crc32 + np.uint32(1))  # as if the bucket's bytes had changed
    with pytest.raises(DatasetError, match="not the bytes that were ingested"):
        read_images(broken, rows)
    assert len(stored(tmp_path)) == len(cached.row_group_ends)  # what the bucket has is no reason to fetch it again


def test_without_room_rows_are_read_one_by_one_and_cached_row_groups_are_used(
    remote: str, tree_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, rows, here = with_cache(remote, tmp_path), np.random.default_rng(1).permutation(51), index_of(tree_dataset)
    read_images(cached, np.arange(3))
    kept = len(stored(tmp_path))
    assert 0 < kept < len(cached.row_group_ends)
    for_this, limited = sum(path.stat().st_size for path in stored(tmp_path)), CacheFolder(str(tmp_path))
    for full in ("disk", "size"):
        if full == "disk":
            monkeypatch.setattr(cache_folder, "RESERVED_BYTES", 1 << 60)
        else:
            monkeypatch.setattr(cache_folder, "RESERVED_BYTES", 0)
            limited = replace(limited, max_bytes=for_this)
        assert cached.cache is not None
        index = replace(cached, cache=replace(cached.cache, folder=limited))
        sent = requests(lambda index=index: read_images(index, rows))
        assert read_images(index, rows) == read_images(here, rows)
        assert sent.bytes_read < int(cached.length.sum())
        assert len(stored(tmp_path)) == kept

    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_folder, "write_all", fail)  # somebody else took the room
    assert read_images(cached, rows) == read_images(here, rows)
    assert not list(tmp_path.glob("*/*.tmp"))
    assert CacheFolder(str(tmp_path), for_this + 1000).has_room(1000)  # and what was claimed for it is free again


def test_a_folder_may_be_removed_meanwhile(remote: str, tree_dataset: str, tmp_path: Path) -> None:
    cached, rows, here = with_cache(remote, tmp_path / "kept"), np.arange(51), index_of(tree_dataset)
    for _ in range(2):
        assert read_images(cached, rows) == read_images(here, rows)
        assert len(stored(tmp_path / "kept")) == len(cached.row_group_ends)
        shutil.rmtree(tmp_path / "kept")


@pytest.mark.parametrize("broken", ["_open_for_writing", "write_all"])
def test_a_disk_that_fails_later_costs_requests_alone(
    remote: str, tree_dataset: str, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was mounted again read-only, or has a bad block."""
    cached, rows, here = with_cache(remote, tmp_path), np.arange(51), index_of(tree_dataset)
    read_images(cached, np.arange(3))

    def fail(*arguments: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache_folder, broken, fail)
    assert read_images(cached, rows) == read_images(here, rows)


def test_a_file_that_cannot_be_opened_is_read_from_the_storage(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, or one more than a process may open."""
    index, request = with_cache(remote, tmp_path), index_of(remote).whole_group(0)
    place = 0, index.paths[0], request.offset, request.length
    assert index.cache is not None
    data = index.cache.read(*place)
    monkeypatch.setattr(RowGroupCache, "mapped", lambda *_: None)
    assert requests(lambda: data == index.cache.read(*place)).get == 1


def test_readers_of_one_row_group_share_an_open_file(remote: str, tmp_path: Path) -> None:
    """Many threads with rows of many row groups each would open more files than a process may (often 1,024)."""
    index, length = with_cache(remote, tmp_path), index_of(remote).whole_group(0).length
    read_images(index, np.arange(3))
    assert index.cache is not None
    before = len(os.listdir("/proc/self/fd"))
    views = [index.cache.mapped(0, length) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert all(views)
    views.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_is_a_one_line_error(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"can't be written on this node .*; give a folder on a disk of its own"):
        read_images(with_cache(remote, tmp_path / "file" / "x"), np.arange(3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20GB", 20 * 10**9), ("1.5 tb", 1_500_000_000_000), ("500MB", 500_000_000), ("0", 0), (123, 123)],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("size", "text"), [(990, "990B"), (1000, "1KB"), (123_456, "130KB"), (448_000_001, "450MB"), (1.52e9, "1.6GB")]
)
def test_texts_of_sizes_are_rounded_up_and_can_be_given(size: float, text: str) -> None:
    assert cache_folder.size_text(size) == text
    assert parse_size(text) >= size


def test_what_is_no_cache_is_refused() -> None:
    assert resolve_cache("~/kept", "1MB") == CacheFolder(os.path.expanduser("~/kept"), 10**6)
    assert resolve_cache("/kept", "0") is None
    assert resolve_cache(None) is None
    for folder, size, message in (
        ("s3://a/b", None, "cache=s3://a/b must be a folder on a disk of each node"),
        ("/kept", "much", "cache-size=much: no such size; give a number and MB, GB or TB, such as 20GB"),
        ("/kept", "-1", "cache-size=-1: no such size"),
        (None, "20GB", "cache-size=20GB needs a folder; give --cache DIR"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve_cache(folder, size)


# --- several processes -------------------------------------------------------------------------------------------


def churn(folder: str, max_bytes: int, seed: int) -> None:
    """Claims, writes, drops and removes files of a folder for ever."""
    generator, cache = np.random.default_rng(seed), CacheFolder(folder, max_bytes)
    subfolder = cache.subfolder("a")
    os.makedirs(subfolder, exist_ok=True)
    while True:
        number = int(generator.integers(0, 30))
        path, size = f"{subfolder}/{number:07d}", 1000 + 100 * number
        claim = cache.claim(path, size)
        if isinstance(claim, Claim):
            claim.drop() if generator.random() < 0.2 else claim.keep(memoryview(bytes([number]) * size))
        elif claim == "no room":
            cache.remove([f"{subfolder}/{int(generator.integers(0, 30)):07d}"])


def bytes_below(folder: Path) -> int:
    sizes = []
    for path in folder.glob("*/*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


def test_processes_that_are_killed_leave_no_broken_file_and_the_size_is_never_exceeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "RESERVED_BYTES", 0)
    context, max_bytes = multiprocessing.get_context("fork"), 20_000
    for round_ in range(3):
        processes = [
            context.Process(target=churn, args=(str(tmp_path), max_bytes, 3 * round_ + each)) for each in range(3)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            # Files come and go while they are added up: nothing is counted that wasn't there, but some of it twice.
            assert bytes_below(tmp_path) <= max_bytes + 3900
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert bytes_below(tmp_path) <= max_bytes
        for path in stored(tmp_path):
            number = int(path.name)
            assert path.read_bytes() == bytes([number]) * (1000 + 100 * number)
    after = CacheFolder(str(tmp_path), max_bytes)
    cache_folder._count_once.cache_clear()
    for number in range(30):  # what killed processes had claimed can be claimed
        claim = after.claim(f"{after.subfolder('a')}/{number:07d}", 1000 + 100 * number)
        assert claim != "claimed"
        if isinstance(claim, Claim):
            claim.drop()
    assert not list(tmp_path.glob("*/*.tmp"))
    assert after.has_room(max_bytes - bytes_below(tmp_path))
    assert not after.has_room(max_bytes - bytes_below(tmp_path) + 1)


def test_a_row_group_that_another_process_fetches_is_waited_for(remote: str, tmp_path: Path) -> None:
    index = with_cache(remote, tmp_path)
    cache, length = index.cache, int(index.group_bytes(np.array([0]))[0])
    assert cache is not None
    claim = cache.claim(0, length)
    assert isinstance(claim, Claim)
    assert cache.claim(0, length) == "claimed"
    request = index.whole_group(0)
    data = files.read_range(index.paths[0], request.offset, length)
    threading.Timer(0.3, lambda: claim.keep(data)).start()
    assert requests(lambda: read_images(index, np.arange(2))).total == 0


CLAIM = """
import os, signal, sys
from pathlib import Path
from tests.dataset.test_row_group_cache import Claim, with_cache
cache, what = with_cache(sys.argv[1], Path(sys.argv[2])).cache, sys.argv[3]
if what == "claim":
    claim = cache.claim(0, int(sys.argv[4]))
    os.kill(os.getpid(), signal.SIGSTOP)
cache.use()
with cache.folder._locked():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("what", ["claim", "lock"])
def test_a_process_that_is_stopped_costs_the_others_time_once(
    remote: str, tree_dataset: str, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it fetches a row group, or changes the folder. Once it is killed, its row group is fetched and kept."""
    monkeypatch.setattr(cache_folder, "PATIENCE_SECONDS", 1.0)
    cached, rows, here = with_cache(remote, tmp_path), np.arange(51), index_of(tree_dataset)
    assert cached.cache is not None
    cached.cache.use()
    length = int(cached.group_bytes(np.array([0]))[0])
    command = [sys.executable, "-c", CLAIM, remote, str(tmp_path), what, str(length)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment) as other:
        os.waitid(os.P_PID, other.pid, os.WSTOPPED)
        before = time.monotonic()
        assert read_images(cached, rows) == read_images(here, rows)
        assert 1.0 < time.monotonic() - before < 5.0
        before = time.monotonic()
        assert read_images(cached, rows) == read_images(here, rows)
        assert time.monotonic() - before < 0.9
        assert 0 not in cached.cache.kept()
        other.kill()
    assert read_images(cached, rows) == read_images(here, rows)
    assert len(stored(tmp_path)) == len(cached.row_group_ends)
    assert requests(lambda: read_images(cached, rows)).total == 0


def test_a_folder_of_another_data_set_makes_room_once_nobody_uses_it(tmp_path: Path) -> None:
    folder = CacheFolder(str(tmp_path), 1000)
    mine, other = (RowGroupCache(folder, folder.subfolder(name)) for name in "ab")
    claim = other.claim(0, 900)
    assert isinstance(claim, Claim)
    claim.keep(memoryview(bytes(900)))
    assert mine.claim(0, 500) == "no room"
    folder.clear_others(mine.subfolder)
    assert mine.claim(0, 500) == "no room"  # this process uses it
    cache_folder._in_use.clear()
    mine.use()
    folder.clear_others(mine.subfolder)
    assert isinstance(mine.claim(0, 500), Claim)


def test_what_is_not_the_cache_s_is_neither_counted_nor_touched(tmp_path: Path) -> None:
    """A folder of photos beside it, and the `lost+found` of a disk, which nobody may read."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1234").write_bytes(bytes(900))
    folder = CacheFolder(str(tmp_path), 1000)
    assert folder.has_room(1000)
    folder.clear_others(folder.subfolder("a"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["1234"]


@pytest.mark.parametrize("num_bytes", [0, 900])
def test_a_claim_of_a_killed_process_takes_no_room(tmp_path: Path, num_bytes: int) -> None:
    """Also in a folder that was larger before, and where it was killed before it gave the file its size."""
    folder = CacheFolder(str(tmp_path), 500)
    subfolder = folder.subfolder("a")
    os.makedirs(subfolder)
    Path(subfolder, "0000001.tmp").write_bytes(bytes(num_bytes))
    assert folder.has_room(500)
    assert folder.claim(f"{subfolder}/0000001", 900) == "no room"
    assert bytes_below(tmp_path) == 0
