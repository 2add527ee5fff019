"""Fetches row groups ahead of the ranks of a node, and removes those whose next use is farthest.

Decisions are made in the order of the visits, long before the reading. A row group is removed once all ranks have read
what they need of it, so reading and fetching never wait for each other in a circle. What is wrong with the cache costs
time only: a reader that waits too long, or whose row group couldn't be fetched, reads its rows from the storage. Where
it has waited in vain, it waits no more until the leader decides again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from pipeline.core.errors import PipelineError
from pipeline.dataset.cache_folder import Claim, Refusal, wait_for_claim
from pipeline.dataset.row_group_cache import RowGroupCache, fetch
from pipeline.dataset.row_reader import RowIndex
from pipeline.loader.row_groups.board import COMING, KEPT, ROWS, UNDECIDED, Board
from pipeline.loader.row_groups.eviction import Eviction, Keeper
from pipeline.loader.row_groups.visits import NEVER, NodeReads, Visit
from pipeline.storage import files

_log = logging.getLogger(__name__)

FETCHERS = 16
"""Row groups that a node fetches at a time, which are in memory meanwhile."""
AHEAD_BYTES = 1 << 30
"""Bytes of row groups that are fetched before a rank needs the first of them, at most; on the disk."""
_POLL_SECONDS, _LONGEST_POLL_SECONDS, _LEADER_SECONDS, _PATIENCE_SECONDS = 0.003, 0.03, 0.2, 30.0
_LIST_SECONDS = 5.0  # between looks for what others have put into a cache that is full


class Patience:
    """How long the readers of a process wait for the leader, which may hang, or be stopped."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._in_vain: int | None = None  # what was decided when a reader gave up

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Waits until `is_over`, but not longer than _PATIENCE_SECONDS, and where that was in vain not again before the
        leader decides more.
        """
        start = time.monotonic()
        while not is_over():
            decided, waited = self._board.decided, time.monotonic() - start
            if decided == self._in_vain:
                return
            if waited > _PATIENCE_SECONDS:
                self._in_vain = decided
                return
            # Dozens of threads may wait, where the storage is slow: looking often would take CPU from the decoder.
            time.sleep(min(_POLL_SECONDS + waited / 8, _LONGEST_POLL_SECONDS))


@dataclass(frozen=True)
class PlannedCache(RowGroupCache):
    """The cache as a reader of one global step sees it: the leader decides what is read whole, and fetches it."""

    board: Board
    step: int
    is_closed: Callable[[], bool]
    patience: Patience

    def whole(self, lengths: Mapping[int, int]) -> set[int]:
        """Returns which of some row groups are, or will be, here in full."""
        self.patience.wait(lambda: self.board.decided > self.step or self.is_closed())
        if self.is_closed():
            return super().whole(lengths)
        states = self.board.states
        return {
            group
            for group, length in lengths.items()
            if states[group] == COMING or (states[group] == KEPT and self.is_kept(group, length))
        }

    def read(self, group: int, uri: str, offset: int, length: int) -> memoryview:
        """Returns a row group, after waiting for it where it is being fetched."""
        self.patience.wait(lambda: self.board.states[group] != COMING or self.is_closed())
        if self.is_closed():
            return super().read(group, uri, offset, length)
        data = self.mapped(group, length)
        return files.read_range(uri, offset, length) if data is None else data


class _ClosedError(Exception):
    """Ends the leader's thread."""


class RowGroupsAhead:
    """A thread that leads the cache of a node's ranks, or stands by to do so. Use `open_ahead`."""

    def __init__(self, reads: NodeReads, cache: RowGroupCache, board: Board) -> None:
        self._reads, self._cache, self._board, self._patience = reads, cache, board, Patience(board)
        self._closed = threading.Event()
        self._begun: deque[tuple[int, int]] = deque()  # (first step, bytes) of visits that were decided
        self._ahead_bytes, self._listed_at = 0, 0.0
        self._fetching: dict[int, Future[None]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="row-groups")
        self._thread.start()

    def index(self, step: int) -> RowIndex:
        """Returns the index through which the rows of a global step are read."""
        own = self._cache
        cache = PlannedCache(own.folder, own.subfolder, self._board, step, self._is_over, self._patience)
        return replace(self._reads.index, cache=cache)

    def read_up_to(self, step: int) -> None:
        """Says that this rank has read its rows of all global steps before `step`."""
        self._board.read_up_to(step)

    def close(self) -> None:
        """Ends the thread, after the fetches that have begun."""
        self._closed.set()
        self._thread.join()
        self._board.close()

    def _is_over(self) -> bool:
        return not self._thread.is_alive()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                if leader := self._board.lead():
                    with closing(leader), ThreadPoolExecutor(FETCHERS, thread_name_prefix="row-group") as pool:
                        self._lead(pool)
                if self._board.others_lead():
                    return
                self._closed.wait(_LEADER_SECONDS)
        except _ClosedError:
            pass
        except (OSError, PipelineError) as error:  # readers go on without it
            _log.warning("the cache %s is no longer used: %s", self._cache.folder.path, error)

    def _lead(self, pool: ThreadPoolExecutor) -> None:
        start, _ = self._board.positions()
        reads, kept = self._reads.starting_at(start), self._cache.kept()
        if not self._cache.folder.has_room(reads.total_bytes() - sum(kept.values())):
            self._cache.folder.clear_others(self._cache.subfolder)
        keeper = Keeper(self._cache.folder.max_bytes, reads.next_use, kept, start)
        self._remove(keeper.shrink())
        for visit in reads.visits():
            self._board.decided = visit.first  # all that begin before are decided
            self._wait(partial(self._may_begin, visit))
            self._begin(visit, keeper, pool)
        self._board.decided = NEVER
        self._closed.wait()

    def _may_begin(self, visit: Visit) -> bool:
        """Whether little enough is ahead of the rank that has read most: AHEAD_BYTES, and the epoch after its own."""
        _, fastest = self._board.positions()
        while self._begun and self._begun[0][0] <= fastest:
            self._ahead_bytes -= self._begun.popleft()[1]
        if visit.first <= fastest:
            return True
        epochs = self._reads.order.steps_per_epoch
        return self._ahead_bytes + visit.length <= AHEAD_BYTES and visit.first // epochs <= fastest // epochs + 1

    def _begin(self, visit: Visit, keeper: Keeper, pool: ThreadPoolExecutor) -> None:
        """Does what is decided for a visit. Its row group is there, or is being fetched, or is read row by row then."""
        self._begun.append((visit.first, visit.length))
        self._ahead_bytes += visit.length
        decision, states = keeper.decide(visit), self._board.states
        if decision.kind == "rows":
            states[visit.group] = ROWS
            return
        self._remove(decision.evictions)
        if visit.group in self._fetching and not self._fetching[visit.group].done():
            return
        if self._cache.is_kept(visit.group, visit.length):
            states[visit.group] = KEPT
            return
        self._wait(self._has_free_fetcher)  # before the claim: nothing is claimed and not begun
        claim = self._claim(visit, keeper)
        states[visit.group] = ROWS if claim == "no room" else COMING
        if claim != "no room":
            self._fetching[visit.group] = pool.submit(self._fetch, visit.group, claim)

    def _has_free_fetcher(self) -> bool:
        self._fetching = {group: each for group, each in self._fetching.items() if not each.done()}
        return len(self._fetching) < FETCHERS

    def _claim(self, visit: Visit, keeper: Keeper) -> Claim | Refusal:
        """Returns a claim for a row group, after removing more where others have written or the disk is fuller."""
        while (claim := self._cache.claim(visit.group, visit.length)) == "no room":
            if time.monotonic() > self._listed_at + _LIST_SECONDS:
                self._listed_at = time.monotonic()
                for group, length in self._cache.kept().items():
                    keeper.adopt(group, length, visit.first - 1)
            eviction = keeper.evict(visit.first) if visit.is_worth else None
            if eviction is None:
                keeper.forget(visit.group)
                break
            self._remove([eviction])
        return claim

    def _fetch(self, group: int, claim: Claim | Refusal) -> None:
        request, state = self._reads.index.whole_group(group), ROWS
        try:
            if isinstance(claim, Claim):
                fetch(claim, self._reads.index.paths[request.shard], request.offset, request.length)
            else:  # another process fetches it, or has just done so
                wait_for_claim(self._cache.path(group), self._closed.is_set)
            if self._cache.is_kept(group, request.length):
                state = KEPT
        except (OSError, PipelineError):  # whoever reads its rows gets the error, with the place of the row
            pass
        finally:
            self._board.states[group] = state

    def _remove(self, evictions: Sequence[Eviction]) -> None:
        """Removes row groups once all ranks have read what they need of them."""
        for each in evictions:
            self._wait(partial(self._has_read, each.last))
            if (fetching := self._fetching.pop(each.group, None)) is not None:
                fetching.result()
            self._board.states[each.group] = UNDECIDED
            self._cache.remove([each.group])

    def _has_read(self, step: int) -> bool:
        slowest, _ = self._board.positions()
        return slowest > step

    def _wait(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            if self._closed.wait(_POLL_SECONDS):
                raise _ClosedError


def open_ahead(reads: NodeReads, cache: RowGroupCache, rank: int) -> RowGroupsAhead | None:
    """Returns what fetches ahead for this rank; None where another order is read through this cache, or the disk fails.

    Raises StorageError if the cache can't be written.
    """
    try:
        cache.use()
        board = Board.join(cache.subfolder, reads, rank)
    except OSError as error:
        _log.warning("nothing is fetched ahead into the cache %s: %s", cache.folder.path, error)
        return None
    if board is None:
        return None
    if board.others_lead():
        board.close()
        return None
    return RowGroupsAhead(reads, cache, board)
