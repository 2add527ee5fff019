"""The index of a source: for each sample its key, its label, and where its bytes lie."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import SourceError
from pipeline.core.keyed_random import Stream, key_hash, permutation, uniform
from pipeline.ingestion.sorting.external_sort import in_memory_or_mapped, sorted_parts

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("object", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)

_PART_ROWS = 1 << 20  # of a table that are looked at together

Integers = Sequence[int] | npt.NDArray[np.int64]

# The bytes of a sample: "file", an encoded image; "cifar", 32x32 uint8 values of R, then G, then B.
Encoding = Literal["file", "cifar"]


@dataclass(frozen=True)
class Unusable:
    """A labelled file that was found and can't be read. It goes to quarantine as the files that can't be decoded do."""

    split: str
    key: str
    label: int
    reason: str  # KIND or KIND: DETAIL
    object: str  # URI of the file, or of the archive that holds it


@dataclass(frozen=True)
class Index:
    """Everything that an ingest needs to know about a source. Raises SourceError if a key occurs twice in a split."""

    name: str
    layout: str
    classes: tuple[str, ...]
    encoding: Encoding
    # For each split a table of INDEX_SCHEMA, sorted by key. `object` is an absolute URI; `offset` and `length` are
    # bytes in the object.
    splits: dict[str, pa.Table]
    fingerprint: str  # changes with names, sizes and times of the files
    ignored: dict[str, int] = field(default_factory=dict)  # files that weren't used: how many of each kind
    num_label_files: int = 0  # tables and other files that the labels were read from
    unusable: tuple[Unusable, ...] = ()
    notes: tuple[str, ...] = ()  # lines for the user: how splits and classes were recognised
    val_share: float = 0.0  # of each class that was held out as val; 0 if the source has a val split
    stamps: pa.Table | None = None  # of the source's objects, see `changes.stamps`; None for digits

    def __post_init__(self) -> None:
        for split, table in self.splits.items():
            if (twice := _first_repeated(table["key"])) is not None:
                raise SourceError(
                    f"{self.name}: key {twice!r} occurs twice in split {split!r}; rename one of the files"
                )

    @property
    def num_rows(self) -> int:
        """Samples in all splits."""
        return sum(table.num_rows for table in self.splits.values())

    @property
    def num_ignored(self) -> int:
        """Files of the source that are neither labelled images nor gave them labels."""
        return sum(self.ignored.values())

    @property
    def num_found(self) -> int:
        """Files of the source, whatever they are."""
        return self.num_labelled + self.num_label_files + self.num_ignored

    @property
    def num_labelled(self) -> int:
        """Labelled images, those that can't be read included."""
        return self.num_rows + len(self.unusable)


def sample_table(
    keys: Sequence[str], labels: Integers, objects: Sequence[str], offsets: Integers, lengths: Integers
) -> pa.Table:
    """Returns a table of INDEX_SCHEMA, sorted by key. All columns have the same length."""

    def parts() -> Iterator[pa.Table]:
        for start in range(0, max(1, len(keys)), _PART_ROWS):
            part = slice(start, start + _PART_ROWS)
            columns = [
                pa.array(keys[part], pa.string()),
                pa.array(labels[part], pa.int32()),
                pa.array(objects[part], pa.string()).dictionary_encode(),
                pa.array(offsets[part], pa.int64()),
                pa.array(lengths[part], pa.int64()),
            ]
            yield pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)

    return sorted_table(parts())


def sorted_table(parts: Iterable[pa.Table]) -> pa.Table:
    """Returns the rows of tables of INDEX_SCHEMA, sorted by key: in memory, or in a mapped file if there are many."""
    return in_memory_or_mapped(sorted_parts(parts, "key"))


def rows_of_keys(table: pa.Table, keys: Sequence[str]) -> dict[str, int]:
    """Returns {key: its row in a table of INDEX_SCHEMA} for those keys that are there."""
    wanted, found = pa.array(keys, pa.string()), dict[str, int]()
    for start in range(0, table.num_rows if len(keys) else 0, _PART_ROWS):
        part = table["key"].slice(start, _PART_ROWS)
        for row in np.flatnonzero(pc.is_in(part, value_set=wanted).to_numpy()).tolist():
            found[part[row].as_py()] = start + row
    return found


def _first_repeated(keys: pa.ChunkedArray) -> str | None:
    """Returns the first of some sorted texts that is followed by itself; None if all are different."""
    for start in range(0, len(keys) - 1, _PART_ROWS):
        part = keys.slice(start, _PART_ROWS + 1)
        same = pc.index(pc.equal(part.slice(0, len(part) - 1), part.slice(1)), True).as_py()
        if same >= 0:
            return str(part[same].as_py())
    return None


def with_test(index: Index, share: float) -> Index:
    """Returns an index in which a share of val, of each class, is the split test; as it is if the source has a test.

    Which rows is decided as for val (`below_share`), by draws of their own: new images move hardly any. Raises
    SourceError if no class has two rows in val.
    """
    if "test" in index.splits or not share:
        return index
    val = index.splits["val"]
    is_test = below_share(val["key"], val["label"].to_numpy(), share, Stream.LOCK_BOX)
    if not is_test.any():
        raise SourceError(f"{index.name}: no class has two images in val, so none can be set aside as test; add some")
    note = f"test: {is_test.sum():,} of the {val.num_rows:,} images of val are set aside by a hash of their keys"
    splits = {**index.splits, "val": val.filter(pa.array(~is_test)), "test": val.filter(pa.array(is_test))}
    return replace(index, splits=splits, notes=(*index.notes, note))


def hold_out(table: pa.Table, fraction: float, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Returns (train, val) of a source without splits: `fraction` of the rows of each class, at least one, become val.

    Which rows depends on their keys and the seed alone. Raises SourceError if a class has fewer than two rows.
    """
    labels = table["label"].to_numpy()
    order = permutation(seed, 0, Stream.HOLD_OUT, key_hash(table["key"]))
    is_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        if len(rows) < 2:
            raise SourceError(
                f"class {label} has {len(rows)} image and the source has no val split; add images to it, "
                "or a val/ folder"
            )
        is_val[rows[: max(1, round(fraction * len(rows)))]] = True
    return table.filter(pa.array(~is_val)), table.filter(pa.array(is_val))


def below_share(
    keys: Sequence[str] | pa.ChunkedArray, labels: npt.NDArray[np.int64], share: float, stream: Stream = Stream.HOLD_OUT
) -> npt.NDArray[np.bool_]:
    """Returns bool [N]: the rows that become val, `share` of each class on average, at least one and never all.

    A row is held out if a number in [0, 1) drawn by its key is below `share`, whatever other rows there are. So new
    images move no old one between the splits, with one exception, without which a class could lack val or train: if no
    row of a class is below the share, its lowest is held out, and if all are, its highest is not. The row of a class
    that has one only stays in train. keys, labels: of N rows. stream: of the draws.
    """
    draws = uniform(0, 0, stream, key_hash(keys))[:, 0]
    is_val = draws < share
    order = np.lexsort((draws, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    ends = np.append(starts[1:], len(order)) - 1
    is_val[order[starts]] = True
    is_val[order[ends]] = False
    return is_val
