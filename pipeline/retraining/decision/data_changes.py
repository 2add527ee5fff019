"""What has changed in the data of a retraining run since the run before: rows and classes, counted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest, is_dataset
from pipeline.dataset.parquet import read_split_provenance

_COLUMNS = ["key", "label", "source_sha256"]
_EMPTY = pa.schema([("key", pa.string()), ("class", pa.string()), ("sha", pa.binary())]).empty_table()


def data_changes(uri: str, data: Manifest, before: str | None) -> dict[str, Any]:
    """Returns `data` of `decision.json`.

    rows: {split: rows}. quarantined: unusable files that ingest has left out, and quarantined_share: of all files. With
    a data set at `before`, `since` is its name, and added, removed and changed count the rows of each split: by key;
    changed ones have another class or other bytes. classes_added and classes_removed are names.

    before: URI of the data set of the run before; None, or one that was dropped, leaves the comparison out.
    """
    refused = sum(data.quarantined.values())
    values: dict[str, Any] = {
        "rows": {name: split.rows for name, split in data.splits.items()},
        "quarantined": refused,
        "quarantined_share": refused / max(1, refused + data.rows),
    }
    if before is None or not is_dataset(before):
        return values
    old = manifest.load(before)
    added, removed, changed = dict[str, int](), dict[str, int](), dict[str, int]()
    for name in {**old.splits, **data.splits}:
        sides = _rows(before, old, name), _rows(uri, data, name)
        added[name], removed[name], changed[name] = _counts(*sides)
    names = set(old.classes), set(data.classes)
    return values | {
        "since": before.rsplit("/", 1)[-1],
        "added": added,
        "removed": removed,
        "changed": changed,
        "classes_added": sorted(names[1] - names[0]),
        "classes_removed": sorted(names[0] - names[1]),
    }


def _rows(uri: str, data: Manifest, split: str) -> pa.Table:
    """Returns key, class (its name) and source_sha256 of a split's rows; no rows if the data set lacks the split."""
    if split not in data.splits or not data.splits[split].rows:
        return _EMPTY
    table = read_split_provenance(uri, data.splits[split], _COLUMNS)
    names = pc.take(pa.array(data.classes), table["label"].combine_chunks())
    return pa.table({"key": table["key"], "class": names, "sha": table["source_sha256"]}).cast(_EMPTY.schema)


def new_rows(
    uri: str, data: Manifest, before: str, name_since: Callable[[str], str] = str
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Returns the keys of train, and bool [N]: True for rows that aren't in train of `before`, of that class and bytes.

    Keys don't count: those of a class folder change with its name. uri, before: of the data sets; `data` is the
    manifest of the first. name_since: returns the name that a class of `before` has now. Both in the order of the rows.
    """
    new, old = _rows(uri, data, "train"), _rows(before, manifest.load(before), "train")
    names = old["class"].combine_chunks().dictionary_encode()
    since = pa.array(list(map(name_since, names.dictionary.to_pylist())), pa.string()).take(names.indices)
    known = _contents(since, old["sha"].combine_chunks())
    is_known = pc.is_in(_contents(new["class"].combine_chunks(), new["sha"].combine_chunks()), value_set=known)
    return new["key"].combine_chunks(), ~np.asarray(is_known)


def _contents(classes: pa.Array, hashes: pa.Array) -> pa.Array:
    """Returns the SHA-256 of each row with its class behind, as bytes."""
    return pc.binary_join_element_wise(hashes, classes.cast(pa.binary()), pa.scalar(b"", pa.binary()))


def _counts(old: pa.Table, new: pa.Table) -> tuple[int, int, int]:
    """Returns the number of rows that were added, removed and changed."""
    places = pc.index_in(new["key"], value_set=old["key"].combine_chunks())
    before, after = old.take(places.drop_null()), new.filter(pc.is_valid(places))
    same = np.ones(len(after), dtype=np.bool_)
    for name in ("class", "sha"):
        same &= np.asarray(pc.equal(before[name], after[name]))
    kept = len(after)
    return len(new) - kept, len(old) - kept, int(kept - same.sum())
