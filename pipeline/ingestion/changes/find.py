"""Finds what has changed in a source since a data set was made of it: the rows that are new, gone or relabelled.

A pure function of the index of the source now, the rows of the data set and the recorded state, but for the bytes of
the files whose state is another or unknown: these are read by the caller, and decide by their SHA-256.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.records import Rows
from pipeline.dataset.version import Changes
from pipeline.ingestion.changes.state import STATE_SCHEMA, same_state, state_of
from pipeline.ingestion.sources import Index

GONE, CHANGED, UNREADABLE = "gone from the source", "changed in the source", "can't be read in the source any more"
RELABELLED = "relabelled in the source"
Read = Callable[[pa.Table], pa.ChunkedArray]
"""Returns binary [N]: SHA-256 of the files of an index table, null for a file that can't be read."""

# Rows of a data set. class: that of the data set, which a person may have corrected.
EARLIER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class", pa.dictionary(pa.int32(), pa.string())),
        ("source_sha256", pa.binary(32)),
        ("repair", pa.dictionary(pa.int32(), pa.string())),  # as in the provenance
        ("by_people", pa.bool_()),  # whether a person has corrected the class, or removed the row
    ]
)


@dataclass(frozen=True)
class Earlier:
    """The rows of a data set for each split, and the state of its source."""

    live: Mapping[str, pa.Table]  # of EARLIER_SCHEMA, in the order of the split
    left_out: Mapping[str, pa.Table]  # of EARLIER_SCHEMA: rows that a person has removed
    state: pa.Table  # of STATE_SCHEMA
    refused: Mapping[str, pa.Array] = field(default_factory=dict)  # keys of files that couldn't be stored

    def removed_from(self, split: str) -> pa.Table:
        """Returns `left_out` of all splits, this one first: an image that has moved between splits stays removed."""
        own = [self.left_out[split]] if split in self.left_out else []
        others = [table for name, table in sorted(self.left_out.items()) if name != split]
        return pa.concat_tables([*own, *others, EARLIER_SCHEMA.empty_table()])


@dataclass(frozen=True)
class SplitChanges:
    """What has changed in one split."""

    changes: Changes  # of the data set's rows
    new: Rows  # rows of the index that are new or have other bytes, ascending
    kept: Rows  # [N]: for each row of the index the row of the data set with the same bytes, -1 for none
    removed: Rows  # [N]: for each row of the index that of `Earlier.removed_from` with the same bytes, -1 for none


@dataclass(frozen=True)
class Counts:
    """What has changed, as numbers of rows."""

    kept: int  # those of `relabelled` included
    new: int
    again: int  # couldn't be stored before, and are tried again
    changed: int  # other bytes
    gone: int
    relabelled: int  # of another class
    read: int  # files that were read to be compared


@dataclass(frozen=True)
class Found:
    """What has changed in a source."""

    splits: dict[str, SplitChanges]  # of the index, and of the data set, sorted
    num_read: int  # files that were read
    num_again: int  # new rows that couldn't be stored before

    def counts(self) -> Counts:
        """Returns the numbers of rows of each kind."""
        every = list(self.splits.values())
        because = [reason for each in every for reason in each.changes.deleted["reason"].to_pylist()]
        changed = because.count(CHANGED)
        return Counts(
            kept=sum(int((each.kept >= 0).sum()) for each in every),
            new=sum(len(each.new) for each in every) - changed - self.num_again,
            again=self.num_again,
            changed=changed,
            gone=len(because) - changed,
            relabelled=sum(each.changes.corrected.num_rows for each in every),
            read=self.num_read,
        )


def find_changes(index: Index, earlier: Earlier, read: Read, recheck: bool = False) -> Found:
    """Returns what has changed. recheck: every file is read, whatever the recorded state says."""
    now = state_of(index)
    found, num_read, num_again = {}, 0, 0
    for split in sorted({*index.splits, *earlier.live}):
        rows = index.splits.get(split)
        if rows is None:
            gone = pa.array([GONE] * earlier.live[split].num_rows, pa.string())
            changes = Changes(deleted=_table(np.arange(len(gone)), reason=gone))
            none = np.empty(0, np.int64)
            found[split] = SplitChanges(changes, none, none, none)
            continue
        before = earlier.state.filter(pc.equal(earlier.state["split"], split))
        before = _aligned(before, rows["key"])
        same = same_state(now.filter(pc.equal(now["split"], split)), before) & (not recheck)
        kept, read_for_live = _same_bytes(rows, earlier.live.get(split), same, read)
        without = kept < 0
        left_out = earlier.removed_from(split)
        known = same & ~_has_several(rows["key"], left_out) & _is_in(rows["key"], earlier.left_out.get(split))
        removed, read_for_removed = _same_bytes(rows, left_out, known, read, without)
        num_read += read_for_live + read_for_removed
        unusable = {each.key for each in index.unusable if each.split == split}
        changes = Changes(
            _deletions(rows, earlier.live.get(split), kept, unusable),
            _corrections(index, rows, earlier.live.get(split), kept, before),
        )
        found[split] = SplitChanges(changes, np.flatnonzero((kept < 0) & (removed < 0)), kept, removed)
        refused = earlier.refused.get(split, pa.array([], pa.string()))
        num_again += int(pc.sum(pc.is_in(rows["key"].take(pa.array(found[split].new)), value_set=refused)).as_py() or 0)
    return Found(found, num_read, num_again)


def _aligned(state: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """Returns the rows of a state for these keys: null where it has none."""
    at = pc.index_in(keys, value_set=state["key"].combine_chunks()).combine_chunks()
    return (
        state.take(at)
        if state.num_rows
        else pa.Table.from_arrays([pa.nulls(len(keys), field.type) for field in STATE_SCHEMA], schema=STATE_SCHEMA)
    )


def _has_several(keys: pa.ChunkedArray, left_out: pa.Table) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: the keys under which people have removed several images, one after the other."""
    counts = left_out["key"].value_counts()
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return np.asarray(pc.is_in(keys, value_set=several).to_numpy(), dtype=bool)


def _is_in(keys: pa.ChunkedArray, left_out: pa.Table | None) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: the keys of a split under which people have removed an image there."""
    if left_out is None:
        return np.zeros(len(keys), dtype=bool)
    return np.asarray(pc.is_in(keys, value_set=left_out["key"].combine_chunks()).to_numpy(), dtype=bool)


def _same_bytes(
    rows: pa.Table,
    earlier: pa.Table | None,
    same: npt.NDArray[np.bool_],
    read: Read,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> tuple[Rows, int]:
    """Returns (for each row of the index the earlier one with its key and bytes, -1 for none: [N]; files read).

    same: rows whose state is that of before. wanted: rows that are looked for, None for all.
    """
    if earlier is None or not earlier.num_rows:
        return np.full(rows.num_rows, -1), 0
    found = pc.index_in(rows["key"], value_set=earlier["key"].combine_chunks()).fill_null(-1)
    kept = found.to_numpy().astype(np.int64)
    if wanted is not None:
        kept[~wanted] = -1
    doubtful = np.flatnonzero((kept >= 0) & ~same)
    if len(doubtful):
        some = rows.take(pa.array(doubtful))
        of_key = np.flatnonzero(pc.is_in(earlier["key"], value_set=some["key"].combine_chunks()).to_numpy())
        before = earlier.select(["key", "source_sha256"]).take(pa.array(of_key))
        at = pc.index_in(
            _named_bytes(some["key"], read(some)),
            value_set=_named_bytes(before["key"], before["source_sha256"]).combine_chunks(),
        )
        at = at.fill_null(-1).to_numpy()
        kept[doubtful] = np.where(at >= 0, of_key[at], -1)
    return kept, len(doubtful)


def _named_bytes(keys: pa.ChunkedArray, hashes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns binary [N]: SHA-256 and key of each row, null for no SHA-256."""
    return pc.binary_join_element_wise(hashes.cast(pa.binary()), keys.cast(pa.binary()), b"")


def _deletions(rows: pa.Table, earlier: pa.Table | None, kept: Rows, unusable: set[str]) -> pa.Table:
    """Returns the rows of the data set that the source doesn't hold any more: `Changes.deleted`."""
    if earlier is None:
        return Changes().deleted
    is_gone = np.ones(earlier.num_rows, dtype=bool)
    is_gone[kept[kept >= 0]] = False
    gone = np.flatnonzero(is_gone)
    keys = earlier["key"].take(pa.array(gone))
    is_there = pc.is_in(keys, value_set=rows["key"].combine_chunks()).to_pylist()
    reasons = [
        CHANGED if there else UNREADABLE if key in unusable else GONE
        for key, there in zip(keys.to_pylist(), is_there, strict=True)
    ]
    return _table(gone, reason=pa.array(reasons, pa.string()))


def _corrections(index: Index, rows: pa.Table, earlier: pa.Table | None, kept: Rows, before: pa.Table) -> pa.Table:
    """Returns the rows of the data set that have another class in the source now: `Changes.corrected`.

    A class that a person has corrected stays while the source's is that of before, and the source has such a class.
    """
    if earlier is None:
        return Changes().corrected
    at = np.flatnonzero(kept >= 0)
    chosen = pa.array(at)
    theirs = earlier.take(pa.array(kept[at]))
    given = pa.array(index.classes, pa.string()).take(rows["label"].take(chosen))
    other = pc.not_equal(given, theirs["class"].cast(pa.string()))
    given_before = before["class"].take(chosen).cast(pa.string())
    is_class = pc.is_in(theirs["class"].cast(pa.string()), value_set=pa.array(index.classes, pa.string()))
    stays = pc.and_(theirs["by_people"], pc.and_(is_class, pc.equal(given, given_before).fill_null(True)))
    changed = np.flatnonzero(pc.and_not(other, stays).to_numpy(zero_copy_only=False))
    classes = given.take(pa.array(changed))
    reasons = pa.array([RELABELLED] * len(changed), pa.string())
    order = np.argsort(kept[at][changed])
    table = _table(kept[at][changed], **{"class": classes, "reason": reasons})
    return table.take(pa.array(order))


def _table(rows: Rows, **columns: pa.Array) -> pa.Table:
    return pa.table({"row": pa.array(rows, pa.int64()), **columns})
