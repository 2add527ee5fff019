"""Streams through a cache of row groups: the batches of a disk, the requests of the plan, whoever is killed."""

import errno
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError, StorageError
from pipeline.dataset import manifest
from pipeline.dataset.cache_folder import CacheFolder
from pipeline.dataset.row_reader import RowIndex, load_index
from pipeline.loader import Loader
from pipeline.loader.decode import best_decoder
from pipeline.loader.row_groups import ahead
from pipeline.loader.row_groups.board import Board
from pipeline.loader.row_groups.estimate import simulate
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import Order
from pipeline.loader.samplers import TrainSampler
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.threads import thread_source
from pipeline.loader.transform import Transform
from pipeline.storage import files
from pipeline.storage.request_counts import requests_sent
from tests.support.jobs import call_job, one_line_error
from tests.support.pictures.datasets import copied

BATCH, WINDOW, EPOCHS, GROUPS = 50, 3, 2, 20


@pytest.fixture(scope="module")
def remote(s3: str, digits_dataset: str) -> str:
    """The URI of the digits in a bucket: 45 row groups, of which most tests read the first GROUPS."""
    return copied(digits_dataset, f"{s3}/digits")


def index_of(uri: str) -> RowIndex:
    return load_index(uri, manifest.load(uri).split("train"))


def order_of(uri: str, window: int | None = WINDOW) -> Order:
    return Order(manifest.load(uri).split("train").row_group_rows[:GROUPS], 5, BATCH, window)


def plan_of(
    uri: str, cache: CacheFolder | None, window: int | None = WINDOW, world: int = 1, rank: int = 0
) -> StreamPlan:
    order = order_of(uri, window)
    sampler = TrainSampler(order, EPOCHS * order.steps_per_epoch, 0, world, rank)
    transform = Transform(8, 8, decoder=best_decoder())
    return StreamPlan(uri, manifest.load(uri).split("train"), sampler, transform, cache=cache)


def group_bytes(uri: str) -> int:
    index = index_of(uri)
    return int(index.group_bytes(np.arange(len(index.row_group_ends))).max())


def stored_bytes(folder: Path) -> int:
    sizes = []
    for path in folder.glob("*/*"):
        if path.name.removesuffix(".tmp").isdecimal():
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
    return sum(sizes)


@pytest.mark.parametrize(
    ("groups", "window"),
    [(0, WINDOW), (2, WINDOW), (9, WINDOW), (None, WINDOW), (9, None)],
)
def test_batches_and_requests_are_those_of_the_plan(
    remote: str, digits_dataset: str, tmp_path: Path, groups: int | None, window: int | None
) -> None:
    """Caches of so many row groups: none, less than a window, a fifth, all; and one window over all."""
    max_bytes = None if groups is None else groups * group_bytes(remote)
    cache = CacheFolder(str(tmp_path), max_bytes) if groups != 0 else None
    plan, local = plan_of(remote, cache, window), plan_of(digits_dataset, None, window)
    expected = list(simulate(NodeReads(order_of(remote, window), index_of(remote), stop=len(plan.sampler)), max_bytes))
    assert len(expected) == EPOCHS
    before, most = requests_sent(), 0
    for batch, same in zip(thread_source(plan)(lambda: False), thread_source(local)(lambda: False), strict=True):
        assert np.array_equal(batch.rows, same.rows)
        assert batch.images.equal(same.images)
        most = max(most, stored_bytes(tmp_path))
    sent = requests_sent().plus(before, -1)
    assert (sent.get, sent.bytes_read) == (sum(e.requests for e in expected), sum(e.bytes_read for e in expected))
    assert most <= (max_bytes if max_bytes is not None else 1 << 60)
    if groups is None:
        assert [each.fetched for each in expected] == [GROUPS, 0]
    if (groups, window) == (9, WINDOW):
        assert [each.fetched for each in expected] == [GROUPS, GROUPS - expected[1].kept]
        assert expected[1].kept > 0


def test_a_cache_that_is_there_already_is_used_and_a_smaller_one_shrinks(remote: str, tmp_path: Path) -> None:
    size = group_bytes(remote)
    list(thread_source(plan_of(remote, CacheFolder(str(tmp_path))))(lambda: False))
    plan, before = plan_of(remote, CacheFolder(str(tmp_path), GROUPS * size)), requests_sent()
    list(thread_source(plan)(lambda: False))
    assert requests_sent().plus(before, -1).get == 0
    list(thread_source(plan_of(remote, CacheFolder(str(tmp_path), 8 * size)))(lambda: False))
    assert 0 < stored_bytes(tmp_path) <= 8 * size


def test_row_groups_are_fetched_ahead_by_so_many_bytes(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two row groups ahead of what is read; all at once for the first batch, which needs three."""
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 2 * group_bytes(remote))
    plan = plan_of(remote, CacheFolder(str(tmp_path)))
    stream = thread_source(plan)(lambda: False)
    next(stream)
    time.sleep(0.5)
    assert 3 <= len([each for each in tmp_path.glob("*/*") if each.name.isdecimal()]) <= 9
    stream.close()


def test_rows_that_a_storage_does_not_give_are_named(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader gives up, and whoever needs a row of the row group gets the error with its place."""

    def fail(uri: str, offset: int, length: int) -> memoryview:
        raise StorageError(f"{uri}: refused")

    index_of(remote)
    monkeypatch.setattr(files, "read_range", fail)
    with pytest.raises(StorageError, match="refused"):
        list(thread_source(plan_of(remote, CacheFolder(str(tmp_path))))(lambda: False))


def test_on_a_full_disk_a_stream_goes_on_without_a_board(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory of a mapped file that has no room on the disk would end the process (SIGBUS), so none has a hole."""
    reads = NodeReads(Order((1,) * 9000, 0, 50, 3), replace(index_of(remote), row_group_ends=np.arange(1, 9001)))
    board = Board.join(str(tmp_path), reads, 0)
    assert board is not None
    [path] = tmp_path.glob("board-????????????????")
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == path.stat().st_size >= 9000
    board.close()

    def fail(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    plan = plan_of(remote, CacheFolder(str(tmp_path)))
    assert plan.ahead() is None
    assert "nothing is fetched ahead" in caplog.text


def test_another_order_uses_what_is_there(remote: str, tmp_path: Path) -> None:
    """Two streams of one process, a leader and one that has no rank of the leader's order; both exact."""
    cache = CacheFolder(str(tmp_path), 7 * group_bytes(remote))
    first, second = plan_of(remote, cache), plan_of(remote, cache, window=5)
    rows: list[list[int]] = [[], []]
    streams = [thread_source(first)(lambda: False), thread_source(second)(lambda: False)]
    for batches in zip(*streams, strict=True):
        for own, batch in zip(rows, batches, strict=True):
            own += batch.rows.tolist()
    each_row_once_an_epoch = sorted(list(range(order_of(remote).num_rows)) * EPOCHS)
    assert [sorted(own) for own in rows] == [each_row_once_an_epoch] * 2
    assert stored_bytes(tmp_path) <= 7 * group_bytes(remote)


def test_what_others_have_put_into_the_cache_goes_like_everything_else(remote: str, tmp_path: Path) -> None:
    """Another process takes the room while a leader works: it is found, and the leader gets the room back."""
    size, plan = group_bytes(remote), plan_of(remote, CacheFolder(str(tmp_path), 9 * group_bytes(remote)))
    index, cache = plan.index(), plan.index().cache
    assert cache is not None
    batches = thread_source(plan)(lambda: False)
    next(batches)
    for group in range(len(index.row_group_ends)):  # as a reader without a plan does
        request = index.whole_group(group)
        cache.read(group, index.paths[request.shard], request.offset, request.length)
    assert stored_bytes(tmp_path) > 8 * size
    left = sum(1 for _ in batches)
    assert left == len(plan.sampler) - 1
    assert 8 * size < stored_bytes(tmp_path) <= 9 * size


def test_the_public_loader_fetches_ahead_over_the_end_of_an_epoch(remote: str, tmp_path: Path) -> None:
    size = group_bytes(remote)
    loader = Loader(
        remote, global_batch_size=BATCH, size_px=8, shuffle_window_row_groups=WINDOW, warmup_epochs=0,
        cache=str(tmp_path), cache_size=8 * size,
    )  # fmt: skip
    for _ in range(EPOCHS):
        assert sorted(np.concatenate([batch.rows for batch in loader]).tolist()) == list(range(loader.num_rows))
        assert 0 < stored_bytes(tmp_path) <= 8 * size


@pytest.mark.parametrize(
    ("window", "groups", "message"),
    [
        (
            WINDOW,
            5.9,
            r"than 2 shuffling windows of 3 row groups, .*; give \d+KB or more, .* or .*_row_groups=2$",
        ),
        (WINDOW, 0.9, r"than 2 shuffling windows of 3 row groups, .*; give \d+KB or more, 0 for no cache$"),
        (WINDOW, 6.0, None),
        (
            None,
            0.9,
            r"cache-size=0.0\d+MB is less than a row group, so rows would be .*; give .*KB or more",
        ),
        (None, 1.0, None),
    ],
)
def test_a_cache_that_is_too_small_is_refused(
    remote: str, digits_dataset: str, tmp_path: Path, window: int | None, groups: float, message: str | None
) -> None:
    """Before anything is read; the remedies are accepted. Where the data set is on a disk, nothing is cached."""
    shards = manifest.load(remote).split("train").shards
    mean = sum(shard.bytes for shard in shards) / sum(len(shard.row_group_rows) for shard in shards)
    size = math.ceil(groups * mean)

    def opened(uri: str, size: str | int, window: int | None = window) -> None:
        recipe = make_recipe("resnet50", warmup_epochs=0, global_batch_size=BATCH)
        recipe = replace(recipe, shuffle_window_row_groups=window)
        next(iter(Loader(uri, recipe, size_px=8, cache=str(tmp_path / "kept"), cache_size=size)))

    opened(digits_dataset, size)
    if message is None:
        opened(remote, size)
        return
    with pytest.raises(RecipeError, match=message) as error:
        opened(remote, size)
    assert not (tmp_path / "kept").exists()
    if remedy := re.search(r"give (\S+) or more", str(error.value)):
        opened(remote, remedy[1])
    if smaller := re.search(r"shuffle_window_row_groups=(\d+)", str(error.value)):
        opened(remote, size, int(smaller[1]))


@pytest.mark.slow
def test_a_run_with_a_cache_that_is_too_small_ends_before_it_begins(remote: str, tmp_path: Path) -> None:
    flags = "--recipe digits --set residency=stream shuffle_window_row_groups=3 --cache kept --cache-size 5KB"
    place = ("--data", remote, "--storage", "storage", "--workers", "0")
    ended = call_job("imagenet_resnet", *place, *flags.split(), cwd=tmp_path)
    assert "cache-size=0.005MB is less than 3 shuffling windows of 3 row groups" in one_line_error(ended)
    assert not list(tmp_path.glob("storage/runs/*/*"))


# --- several ranks -----------------------------------------------------------------------------------------------


def test_ranks_of_a_node_share_a_cache(remote: str, tmp_path: Path) -> None:
    """Both together request what the plan says for the node, also when one lags behind: no row group twice."""
    max_bytes, order = 9 * group_bytes(remote), order_of(remote)
    stop = EPOCHS * order.steps_per_epoch
    expected = list(simulate(NodeReads(order, index_of(remote), 2, (0, 1), stop=stop), max_bytes))
    plans = [plan_of(remote, CacheFolder(str(tmp_path), max_bytes), world=2, rank=rank) for rank in (0, 1)]
    before = requests_sent()
    streams = [thread_source(plan)(lambda: False) for plan in plans]
    for step, batches in enumerate(zip(*streams, strict=True)):
        assert [batch.rows.tolist() for batch in batches] == [order.rows(step, 2, rank).tolist() for rank in (0, 1)]
        assert stored_bytes(tmp_path) <= max_bytes
        if step == order.steps_per_epoch // 2:
            break
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(lambda: sum(1 for _ in streams[0]))
        time.sleep(0.5)
        assert not rest.done()  # it waits for row groups that have no room before the other has read what is there
        assert sum(1 for _ in streams[1]) == rest.result() == stop - step - 1
    assert requests_sent().plus(before, -1).get == sum(each.requests for each in expected)


def test_a_rank_that_joins_is_seen_at_once(remote: str, tmp_path: Path) -> None:
    """A leader that took it for dead would remove row groups that it hasn't read."""
    reads = NodeReads(order_of(remote), index_of(remote), 2, (0, 1), 5)
    first = Board.join(str(tmp_path), reads, 0)
    assert first is not None
    first.read_up_to(9)
    assert first.positions() == (9, 9)
    second = Board.join(str(tmp_path), reads, 1)
    assert second is not None
    assert first.positions() == (5, 9)
    second.close()
    first.close()


LEADER = """
import sys, time
from tests.loader.row_groups.test_ahead import CacheFolder, plan_of, thread_source
uri, folder, max_bytes = sys.argv[1:]
for batch in thread_source(plan_of(uri, CacheFolder(folder, int(max_bytes)), world=2, rank=1))(lambda: False):
    print(batch.index, flush=True)
    time.sleep(0.02)
"""


def test_a_leader_that_is_stopped_costs_time_once(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rank counts as at work. Rows of what it has claimed, or would decide, are read from the storage."""
    monkeypatch.setattr(ahead, "_PATIENCE_SECONDS", 2.0)
    max_bytes, order = 9 * group_bytes(remote), order_of(remote)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", LEADER, remote, str(tmp_path), str(max_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        other.stdout.readline()
        plan, moments = plan_of(remote, CacheFolder(str(tmp_path), max_bytes), world=2), list[float]()
        for step, batch in enumerate(thread_source(plan)(lambda: False)):
            assert batch.rows.tolist() == order.rows(step, 2, 0).tolist()
            if step == 3:
                other.send_signal(signal.SIGSTOP)
            moments.append(time.monotonic())
        assert step == EPOCHS * order.steps_per_epoch - 1
        waits = [late - early for early, late in itertools.pairwise(moments) if late - early > 1.8]
        assert 1 <= len(waits) <= 2, waits  # what was decided already, and what wasn't
        other.kill()


def test_a_leader_that_is_killed_is_replaced(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process leads and is killed while it fetches. Later its fetches are made again, and nothing is broken."""
    max_bytes, order = 9 * group_bytes(remote), order_of(remote)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", LEADER, remote, str(tmp_path), str(max_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        other.stdout.readline()
        plan = plan_of(remote, CacheFolder(str(tmp_path), max_bytes), world=2)
        before = time.monotonic()
        for step, batch in enumerate(thread_source(plan)(lambda: False)):
            assert batch.rows.tolist() == order.rows(step, 2, 0).tolist()
            assert stored_bytes(tmp_path) <= max_bytes
            if step == 10:
                other.kill()
        assert other.wait() == -signal.SIGKILL
    assert step == EPOCHS * order.steps_per_epoch - 1
    assert time.monotonic() < before + ahead._PATIENCE_SECONDS  # nobody waited in vain
    for path in tmp_path.glob("*/*"):
        if path.name.isdecimal():
            request = index_of(remote).whole_group(int(path.name))
            uri = index_of(remote).paths[request.shard]
            assert path.read_bytes() == files.read_range(uri, request.offset, request.length)
