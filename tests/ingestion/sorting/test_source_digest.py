import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingestion.sorting import external_sort
from pipeline.ingestion.sorting.source_digest import lines_of, source_digest, stored_lines

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "a b", "a 1", "a/1", "é", "日本/x", ""]),
        st.integers(0, 11),
        st.binary(min_size=32, max_size=32),
    ),
    max_size=12,
)


def by_hand(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@given(st.lists(ROWS, max_size=4), st.booleans())
def test_the_digest_is_that_of_the_sorted_lines(parts: list[list[tuple[str, int, bytes]]], small_runs: bool) -> None:
    """Whatever the parts, and whether they fit in memory. A split's name and a label are parts of the text."""
    expected, arrays = [], []
    for split, rows in zip(("train", "val", "train", "val"), parts, strict=False):
        expected += [f"{split} {key} {label} {sha256.hex()}" for key, label, sha256 in rows]
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        types = (pa.string(), pa.int32(), pa.binary(32))
        names = ("key", "label", "source_sha256")
        table = pa.table([pa.array(*each) for each in zip(columns, types, strict=True)], names=list(names))
        arrays.append(stored_lines(split, pa.concat_tables([table.slice(0, 2), table.slice(2)])))
    refused = ["val é 3 ", "train a b 3 "]
    with pytest.MonkeyPatch.context() as patch:
        if small_runs:
            patch.setattr(external_sort, "RUN_BYTES", 60)
        assert source_digest([*arrays, *lines_of(refused)]) == by_hand(expected + refused)


def test_the_digest_of_nothing_is_that_of_an_empty_text() -> None:
    assert source_digest([]) == by_hand([])
