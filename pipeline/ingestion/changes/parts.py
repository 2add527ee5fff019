"""The parts of a manifest that follow from finished shards: of a data set of its own, and of a version."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DatasetError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Shard, Split, Version, parse_shard
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.version import derive
from pipeline.ingestion.changes.onto import Onto
from pipeline.ingestion.shard_task import Receipt
from pipeline.ingestion.sources import Index
from pipeline.ingestion.target import QUARANTINE_NAME


@dataclass(frozen=True)
class Parts:
    """Parts of a manifest."""

    splits: dict[str, Split]
    sources: list[str]  # the lines of `source_digest`, but those of files that couldn't be read
    repaired: Counter[str]  # rows that a version keeps, by what was done
    version: Version | None


def whole_parts(index: Index, out: str, receipts: list[Receipt]) -> Parts:
    """Returns the parts of a data set whose rows are all in its own shards. Raises DatasetError as `version_parts`."""
    splits, sources = {}, list[str]()
    for name in index.splits:
        mine = _of_split(name, receipts)
        splits[name] = _build_split(name, mine)
        sources += _source_lines(out, name, splits[name].shards, mine)
    if "train" in splits:
        _check_no_class_is_lost(index, np.array(splits["train"].rows_per_class))
    return Parts(splits, sources, Counter(), None)


def version_parts(onto: Onto, index: Index, out: str, receipts: list[Receipt]) -> Parts:
    """Returns the parts of a version: the parent's shards without what is gone, and its own ones.

    Writes the edit files. Raises DatasetError if no image of a split or class can be used.
    """
    own, sources = {}, [*onto.source_lines(index)]
    for name in index.splits:
        mine = _of_split(name, receipts)
        own[name] = _shards(mine)
        sources += _source_lines(out, name, own[name], mine)
    changes = {name: each.changes for name, each in onto.found.splits.items() if name in onto.stored.splits}
    derived = derive(onto.uri, out, index.classes, changes, own)
    for name in index.splits:
        if not derived.splits.get(name, _NO_ROWS).rows:
            raise DatasetError(f"split {name!r}: no image of it can be used; see {QUARANTINE_NAME}")
    if "train" in index.splits:
        written = [receipt.rows_per_class for receipt in _of_split("train", receipts)]
        _check_no_class_is_lost(index, sum(map(np.array, written), onto.labels_in_train(index)))
    return Parts(dict(sorted(derived.splits.items())), sources, onto.repaired(), derived.version)


_NO_ROWS = Split(0, (), ())


def _of_split(name: str, receipts: list[Receipt]) -> list[Receipt]:
    return [receipt for receipt in receipts if receipt.path.split("/")[0] == name]


def _check_no_class_is_lost(index: Index, usable: npt.NDArray[np.int64]) -> None:
    """Raises DatasetError if a class had training images and none of them can be used. usable: how many of each."""
    wanted = np.bincount(index.splits["train"]["label"].to_numpy(), minlength=len(index.classes))
    for label in np.flatnonzero((wanted > 0) & (usable == 0)):
        raise DatasetError(
            f"class {index.classes[label]!r}: none of its {counted(int(wanted[label]), 'training image')} can be used; "
            f"see {QUARANTINE_NAME}, and mend or remove them"
        )


def _shards(receipts: list[Receipt]) -> tuple[Shard, ...]:
    return tuple(shard for shard in (parse_shard(receipt.shard) for receipt in receipts) if shard.rows)


def _build_split(name: str, receipts: list[Receipt]) -> Split:
    shards = _shards(receipts)
    if not shards:
        raise DatasetError(f"split {name!r}: no image of it can be used; see {QUARANTINE_NAME}")
    counts = np.sum([receipt.rows_per_class for receipt in receipts], axis=0)
    return Split(sum(shard.rows for shard in shards), tuple(counts.tolist()), shards)


def _source_lines(out: str, name: str, shards: tuple[Shard, ...], receipts: list[Receipt]) -> Iterable[str]:
    """Yields a line for each file of the source, stored in shards of `out` or refused.

    `source_digest` is a hash over the lines of all files of the source.
    """
    if shards:
        table = read_split_provenance(out, Split(0, (), shards), ["key", "label", "source_sha256"])
        columns = (table[column].to_pylist() for column in table.column_names)
        yield from (f"{name} {key} {label} {sha.hex()}" for key, label, sha in zip(*columns, strict=True))
    refused = (entry for receipt in receipts for entry in receipt.quarantined)
    yield from (f"{name} {entry['key']} {entry['label']} {entry['sha256']}" for entry in refused)
