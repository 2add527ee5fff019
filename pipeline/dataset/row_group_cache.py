"""A cache of row groups of object storage, on a disk of the node that reads them.

A row group is fetched whole, by one request, and its rows are then read from the disk. Here whoever wants one that
isn't there fetches it, as long as the folder has room; otherwise the caller reads rows. Where the order of reading is
known, `pipeline/loader/row_groups/` fetches row groups ahead and removes those whose next use is farthest.
"""

import logging
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakValueDictionary

from pipeline.dataset.cache_folder import CacheFolder, Claim, Refusal, size_of, use, wait_for_claim
from pipeline.dataset.manifest import Split
from pipeline.storage import files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowGroupCache:
    """The row groups of one split that a folder keeps."""

    folder: CacheFolder
    subfolder: str
    """Absolute path; one for each content of a split, wherever that lies."""

    @staticmethod
    def of(folder: CacheFolder, split: Split) -> "RowGroupCache":
        """Returns the part of a folder that is for `split`."""
        # Row groups are cached from their first row to their last, without those that a version leaves out.
        deletions = {shard.edits.deletions for shard in split.shards if shard.deleted and shard.edits}
        names = [shard.sha256 for shard in split.shards] + sorted(file.sha256 for file in deletions if file)
        return RowGroupCache(folder, folder.subfolder("".join(names)))

    def path(self, group: int) -> str:
        """Returns the path of a row group's file."""
        return os.path.join(self.subfolder, f"{group:07d}")

    def is_kept(self, group: int, length: int) -> bool:
        """Whether a row group of `length` bytes is here in full."""
        return size_of(self.path(group)) == length

    def whole(self, lengths: Mapping[int, int]) -> set[int]:
        """Returns which of some row groups are to be read whole: those that are here, and the others if there is room.

        lengths: {row group: its bytes}. Raises StorageError if the folder can't be written.
        """
        missing = {group for group, length in lengths.items() if not self.is_kept(group, length)}
        if missing and not self.folder.has_room(sum(lengths[group] for group in missing)):
            return set(lengths) - missing
        return set(lengths)

    def read(self, group: int, uri: str, offset: int, length: int) -> memoryview:
        """Returns a row group, `length` bytes at `offset` of `uri`; one process of the node fetches it.

        One that another process doesn't finish in time is read from the storage. Raises what `files.read_range` raises.
        """
        claim: Claim | Refusal = "kept"
        while not self.is_kept(group, length) and (claim := self._claim_or_warn(group, length)) == "claimed":
            if not wait_for_claim(self.path(group)):
                break
        if isinstance(claim, Claim):
            return fetch(claim, uri, offset, length)
        data = self.mapped(group, length)
        return files.read_range(uri, offset, length) if data is None else data

    def mapped(self, group: int, length: int) -> memoryview | None:
        """Returns the file of a row group of `length` bytes, mapped; None if it isn't here in full any more."""
        try:
            with open(self.path(group), "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size != length:
                    return None
                if (mapping := _mapped.get((self.path(group), found.st_ino))) is None:
                    mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
                    _mapped[self.path(group), found.st_ino] = mapping
        except (OSError, ValueError):  # removed, being cut, or more open files than the system allows
            return None
        return memoryview(mapping)

    def use(self) -> None:
        """Makes the folders, and keeps others from removing what is in them. Raises StorageError or OSError."""
        self.folder.has_room(0)
        use(self.subfolder)

    def claim(self, group: int, length: int) -> Claim | Refusal:
        """Returns a claim to fetch a row group, or why there is none."""
        self.use()
        return self.folder.claim(self.path(group), length)

    def _claim_or_warn(self, group: int, length: int) -> Claim | Refusal:
        try:
            return self.claim(group, length)
        except OSError as error:
            _warn_once(error.strerror)
            return "no room"

    def remove(self, groups: list[int]) -> None:
        """Removes row groups."""
        self.folder.remove([self.path(group) for group in groups])

    def kept(self) -> dict[int, int]:
        """Returns {row group: bytes of its file}."""
        try:
            with os.scandir(self.subfolder) as entries:
                return {int(entry.name): entry.stat().st_size for entry in entries if entry.name.isdecimal()}
        except FileNotFoundError:
            return {}


_mapped: WeakValueDictionary[tuple[str, int], mmap.mmap] = WeakValueDictionary()
"""{(path, inode): mapping} of what is being read. Each holds an open file, and many threads read one row group."""


def fetch(claim: Claim, uri: str, offset: int, length: int) -> memoryview:
    """Returns what a claim is for, by one request, after keeping it if the disk has room and works."""
    try:
        data = files.read_range(uri, offset, length)
    except BaseException:
        claim.drop()
        raise
    try:
        claim.keep(data)
    except OSError as error:
        _warn_once(error.strerror)
    return data


@lru_cache(maxsize=16)
def _warn_once(error: str) -> None:
    """Warns of a cache whose disk has failed since its folder was made. The storage has what it lacks."""
    _log.warning("row groups can't be kept in the cache (%s): they are read from the storage", error)
