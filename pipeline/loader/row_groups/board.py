"""What the ranks of a node tell each other about a cache: how far each has read, and what has been decided.

One of them leads: it decides, fetches and removes. When it ends, even by a kill, another one leads on.
"""

import errno
import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.core.locks import lock_within, try_lock
from pipeline.loader.row_groups.visits import NodeReads

UNDECIDED, ROWS, COMING, KEPT = range(4)
"""States of a row group: nothing is known; read it row by row; it is being fetched; it was fetched."""
_LEADER, _BOARD = "leader", "board-"
_HEAD = 2  # numbers before those of the ranks: the step up to which is decided, and when a rank has joined
_ALIVE_SECONDS = 0.5  # between looks at which ranks are at work
_SLOT_SECONDS = 0.2  # another rank that looks who is alive holds a rank's lock for a moment
_REMOVAL_SECONDS = 5.0  # a leader removes boards of others in milliseconds


class Board:
    """Memory that the ranks of a node share, in a file of the cache. Use `Board.join`."""

    def __init__(self, path: str, reads: NodeReads, rank: int, slot: IO[bytes]) -> None:
        num_ranks, num_groups = len(reads.ranks), len(reads.index.row_group_ends)
        self._path, self._slot = path, slot
        self._ranks, self._own = reads.ranks, reads.ranks.index(rank)
        self._file = open(path, "a+b")  # noqa: SIM115 - locked as long as it is open: a leader removes boards of others
        if not lock_within(self._file, _REMOVAL_SECONDS, fcntl.LOCK_SH):
            raise TimeoutError(errno.ETIMEDOUT, "another process removes its board, and doesn't finish")
        size = 8 * (_HEAD + num_ranks) + num_groups
        # Written, not only made longer: on a full disk that is an error, and a hole in a mapping would be SIGBUS.
        while (missing := size - os.fstat(self._file.fileno()).st_size) > 0:
            os.write(self._file.fileno(), bytes(missing))
        memory = np.memmap(self._file, mode="r+", dtype=np.uint8)
        self._numbers = memory[: 8 * (_HEAD + num_ranks)].view(np.int64)
        self._read = self._numbers[_HEAD:]
        self.states = memory[8 * (_HEAD + num_ranks) : size]
        self._alive: list[int] = [self._own]
        self._looked_at, self._seen = 0.0, 0
        self.read_up_to(reads.start)
        self._numbers[1] = time.monotonic_ns()  # others look at once who is at work

    @staticmethod
    def join(subfolder: str, reads: NodeReads, rank: int) -> "Board | None":
        """Returns the board of the ranks that read this; None if another reader of this process has taken the place.

        Raises OSError, such as for a full disk.
        """
        os.makedirs(subfolder, exist_ok=True)
        digest = hashlib.sha256(reads.order.digest + repr((reads.world_size, reads.ranks)).encode()).hexdigest()[:16]
        path = os.path.join(subfolder, f"{_BOARD}{digest}")
        slot = Path(f"{path}.{rank}").open("ab")  # noqa: SIM115 - locked as long as it is open
        if lock_within(slot, _SLOT_SECONDS):
            return Board(path, reads, rank, slot)
        slot.close()
        return None

    @property
    def decided(self) -> int:
        """The global step up to which, exclusively, the leader has decided what is read how."""
        return int(self._numbers[0])

    @decided.setter
    def decided(self, step: int) -> None:
        self._numbers[0] = step

    def read_up_to(self, step: int) -> None:
        """Tells the others that this rank has read its rows of all global steps before `step`."""
        self._read[self._own] = step

    def positions(self) -> tuple[int, int]:
        """Returns the least and the largest step up to which the ranks at work have read."""
        joined = int(self._numbers[1])
        if joined != self._seen or time.monotonic() > self._looked_at + _ALIVE_SECONDS:
            self._seen = joined
            self._alive = [place for place in range(len(self._ranks)) if place == self._own or self._is_alive(place)]
            self._looked_at = time.monotonic()
        found = self._read[self._alive]
        return int(found.min()), int(found.max())

    def lead(self) -> IO[bytes] | None:
        """Returns a lock that makes this rank the leader until it is closed, and forgets all decisions; or None."""
        file = Path(self._path).with_name(_LEADER).open("a+b")
        if not try_lock(file):
            file.close()
            return None
        self.decided = -1
        self.states[:] = UNDECIDED
        self._looked_at = 0.0
        lowest, _ = self.positions()
        others = [place for place in range(len(self._ranks)) if place not in self._alive]
        self._read[others] = lowest  # those who join later may find what an earlier run has left
        file.truncate(0)
        file.write(os.path.basename(self._path).encode())
        file.flush()
        for other in Path(self._path).parent.glob(f"{_BOARD}*"):
            if not other.name.startswith(os.path.basename(self._path)):
                with other.open("ab") as board:
                    if try_lock(board):
                        other.unlink(missing_ok=True)
        return file

    def others_lead(self) -> bool:
        """Whether this cache has a leader who reads in another order than this rank."""
        with Path(self._path).with_name(_LEADER).open("a+b") as file:
            if try_lock(file, fcntl.LOCK_SH):
                return False
            file.seek(0)
            return file.read() not in (b"", os.path.basename(self._path).encode())

    def close(self) -> None:
        """Leaves the board."""
        self._slot.close()
        self._file.close()

    def _is_alive(self, place: int) -> bool:
        with Path(f"{self._path}.{self._ranks[place]}").open("ab") as slot:
            return not try_lock(slot, fcntl.LOCK_SH)
