"""The parts of a manifest that follow from finished shards: of a data set of its own, and of a version."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Shard, Split, Version, parse_shard
from pipeline.dataset.parquet import read_shard_provenance
from pipeline.dataset.version import derive
from pipeline.ingestion.changes.onto import Onto
from pipeline.ingestion.shard_task import Receipt
from pipeline.ingestion.sorting.source_digest import lines_of, source_digest, stored_lines
from pipeline.ingestion.sources import Index
from pipeline.ingestion.target import QUARANTINE_NAME

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Parts of a manifest."""

    splits: dict[str, Split]
    source_digest: str  # see `Manifest.source_digest`
    repaired: Counter[str]  # rows that a version keeps, by what was done
    version: Version | None


def whole_parts(index: Index, out: str, receipts: list[Receipt]) -> Parts:
    """Returns the parts of a data set whose rows are all in its own shards. Raises DatasetError as `version_parts`."""
    own = _own_shards(index, receipts)
    for name, shards in own.items():
        if not shards:
            raise DatasetError(_nothing_usable(name))
    written = _no_rows(index)
    digest = source_digest(_source_lines(index, out, own, receipts, written))
    if "train" in own:
        _check_no_class_is_lost(index, written["train"])
    splits = {
        name: Split(sum(shard.rows for shard in shards), tuple(written[name].tolist()), shards)
        for name, shards in own.items()
    }
    return Parts(splits, digest, Counter(), None)


def version_parts(onto: Onto, index: Index, out: str, receipts: list[Receipt]) -> Parts:
    """Returns the parts of a version: the parent's shards without what is gone, and its own ones.

    Writes the edit files. Raises DatasetError if no image of a split or class can be used.
    """
    own, written = _own_shards(index, receipts), _no_rows(index)
    digest = source_digest(chain(onto.source_lines(index), _source_lines(index, out, own, receipts, written)))
    derived = derive(onto.uri, out, index.classes, onto.changes, own, onto.stored)
    for name in index.splits:
        if not derived.splits.get(name, _NO_ROWS).rows:
            raise DatasetError(_nothing_usable(name))
    if "train" in index.splits:
        _check_no_class_is_lost(index, written["train"] + onto.labels_in_train(index))
    return Parts(dict(sorted(derived.splits.items())), digest, onto.repaired(), derived.version)


_NO_ROWS = Split(0, (), ())


def _own_shards(index: Index, receipts: list[Receipt]) -> dict[str, tuple[Shard, ...]]:
    """Returns the shards that were written and have rows, by split."""
    own: dict[str, list[Shard]] = {name: [] for name in index.splits}
    for receipt in receipts:
        if receipt.shard["rows"]:
            own[receipt.split].append(parse_shard(receipt.shard))
    return {name: tuple(shards) for name, shards in own.items()}


def _no_rows(index: Index) -> dict[str, Labels]:
    return {name: np.zeros(len(index.classes), dtype=np.int64) for name in index.splits}


def _nothing_usable(split: str) -> str:
    return f"split {split!r}: no image of it can be used; see {QUARANTINE_NAME}"


def _check_no_class_is_lost(index: Index, usable: Labels) -> None:
    """Raises DatasetError if a class had training images and none of them can be used. usable: how many of each."""
    wanted = np.bincount(index.splits["train"]["label"].to_numpy(), minlength=len(index.classes))
    for label in np.flatnonzero((wanted > 0) & (usable == 0)):
        raise DatasetError(
            f"class {index.classes[label]!r}: none of its {counted(int(wanted[label]), 'training image')} can be used; "
            f"see {QUARANTINE_NAME}, and mend or remove them"
        )


def _source_lines(
    index: Index,
    out: str,
    own: Mapping[str, tuple[Shard, ...]],
    receipts: list[Receipt],
    written: Mapping[str, Labels],
) -> Iterator[pa.Array]:
    """Yields a line for each file of the source: stored in shards of `out`, refused, or unreadable.

    `source_digest` is a hash over them. written: int64 [classes] for each split, to which stored rows are added.
    """
    for name, shards in own.items():
        for rows in read_shard_provenance(out, Split(0, (), shards), ["key", "label", "source_sha256"]):
            written[name][:] += np.bincount(rows["label"].to_numpy(), minlength=len(index.classes))
            yield stored_lines(name, rows)
    yield from lines_of(
        f"{receipt.split} {entry['key']} {entry['label']} {entry['sha256']}"
        for receipt in receipts
        for entry in receipt.quarantined
    )
    yield from lines_of(f"{each.split} {each.key} {each.label} " for each in index.unusable)
