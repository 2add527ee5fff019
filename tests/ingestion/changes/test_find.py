"""What has changed in a source: the pure function, against cases and against sources that Hypothesis changes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingestion.changes.find import (
    CHANGED,
    EARLIER_SCHEMA,
    GONE,
    RELABELLED,
    UNREADABLE,
    Counts,
    Earlier,
    Found,
    find_changes,
)
from pipeline.ingestion.changes.stamps import STAMPS_SCHEMA
from pipeline.ingestion.changes.state import STATE_SCHEMA, state_of
from pipeline.ingestion.sources.index import Index, Unusable, sample_table

CLASSES = ("ant", "bee", "cow")


@dataclass(frozen=True)
class File:
    """A file of a source: its class, its bytes (all files are equally long), and its time of change."""

    class_name: str
    content: int = 0
    modified: int | None = 0


Files = dict[tuple[str, str], File]  # by split and key


def sha256(content: int) -> bytes:
    return hashlib.sha256(bytes([content])).digest()


def index_of(files: Files, classes: tuple[str, ...] = CLASSES) -> Index:
    splits = {}
    for split in sorted({split for split, _ in files}):
        mine = {key: file for (name, key), file in files.items() if name == split}
        labels = [classes.index(file.class_name) for file in mine.values()]
        places = [f"/source/{split}/{key}" for key in mine]
        splits[split] = sample_table(list(mine), labels, places, [0] * len(mine), [1] * len(mine))
    stamps = [
        {"object": f"/source/{split}/{key}", "name": f"{split}/{key}", "modified_ns": file.modified, "etag": ""}
        for (split, key), file in files.items()
    ]
    table = pa.Table.from_pylist(stamps, schema=STAMPS_SCHEMA)
    return Index("source", "folders", classes, "file", splits, "", stamps=table)


def rows_of(files: Files, by_people: frozenset[tuple[str, str]] = frozenset()) -> dict[str, pa.Table]:
    """Returns tables of EARLIER_SCHEMA, in another order than that of the index."""
    tables = {}
    for split in sorted({split for split, _ in files}):
        rows = [
            {"key": key, "class": file.class_name, "source_sha256": sha256(file.content), "repair": "",
             "by_people": (name, key) in by_people}
            for (name, key), file in sorted(files.items(), key=lambda each: (each[1].content, each[0]))
            if name == split
        ]  # fmt: skip
        tables[split] = pa.Table.from_pylist(rows, schema=EARLIER_SCHEMA)
    return tables


@dataclass
class Reader:
    """Reads the files of an index table, and remembers which."""

    files: Files
    keys: list[str] = field(default_factory=list)

    def __call__(self, rows: pa.Table) -> pa.ChunkedArray:
        names = [tuple(place.removeprefix("/source/").split("/", 1)) for place in rows["object"].to_pylist()]
        self.keys += [f"{split}/{key}" for split, key in names]
        return pa.chunked_array([pa.array([sha256(self.files[name].content) for name in names], pa.binary(32))])


def found_of(before: Files, after: Files, recheck: bool = False) -> tuple[Found, Reader]:
    reader = Reader(after)
    return find_changes(
        index_of(after), Earlier(rows_of(before), {}, state_of(index_of(before))), reader, recheck
    ), reader


CAT = File("ant", content=1)


@pytest.mark.parametrize(
    ("after", "counts"),
    [
        (CAT, Counts(1, 0, 0, 0, 0, 0, 0)),
        (File("ant", 1, 7), Counts(1, 0, 0, 0, 0, 0, read=1)),  # touched, or copied: the same bytes
        (File("ant", 2, 7), Counts(0, 0, 0, 1, 0, 0, read=1)),
        (File("ant", 2, 0), Counts(1, 0, 0, 0, 0, 0, 0)),  # as many other bytes at the very same time: --recheck tells
        (File("ant", 1, None), Counts(1, 0, 0, 0, 0, 0, read=1)),  # just written: its time says nothing
        (File("bee", 1), Counts(1, 0, 0, 0, 0, 1, 0)),
        (File("bee", 2, 7), Counts(0, 0, 0, 1, 0, 0, read=1)),  # a new row, of the new class
        (None, Counts(0, 0, 0, 0, 1, 0, 0)),
    ],
)
def test_what_becomes_of_one_file(after: File | None, counts: Counts) -> None:
    rest = {("train", name): File("bee", 9) for name in ("y", "z")}
    found, reader = found_of({("train", "a"): CAT, **rest}, {**({("train", "a"): after} if after else {}), **rest})
    assert found.counts() == Counts(counts.kept + 2, *list(vars(counts).values())[1:])
    assert len(reader.keys) == counts.read
    rechecked, reader = found_of(
        {("train", "a"): CAT, **rest}, {**({("train", "a"): after} if after else {}), **rest}, True
    )
    assert len(reader.keys) == rechecked.num_read == (3 if after else 2)
    is_other = after is not None and after.content != CAT.content
    assert rechecked.counts().changed == int(is_other)


def test_reasons_name_what_happened() -> None:
    before = {("train", key): File("ant", number) for number, key in enumerate("abcde")}
    after = {**before, ("train", "b"): File("ant", 9, 7), ("train", "c"): File("cow", 2)}
    del after["train", "a"], after["train", "e"]
    index = index_of(after)
    index = Index(**{**vars(index), "unusable": (Unusable("train", "e", 0, "file not readable", "/source/e"),)})
    found = find_changes(index, Earlier(rows_of(before), {}, state_of(index_of(before))), Reader(after))
    changes = found.splits["train"].changes
    assert changes.deleted.to_pydict() == {"row": [0, 1, 4], "reason": [GONE, CHANGED, UNREADABLE]}
    assert changes.corrected.to_pydict() == {"row": [2], "class": ["cow"], "reason": [RELABELLED]}
    assert found.splits["train"].new.tolist() == [0]  # b
    assert found.splits["train"].kept.tolist() == [-1, 2, 3]  # b, c, d


def test_without_a_recorded_state_every_file_is_read() -> None:
    files = {("train", key): File("ant", number) for number, key in enumerate("abc")}
    found = find_changes(index_of(files), Earlier(rows_of(files), {}, STATE_SCHEMA.empty_table()), Reader(files))
    assert found.counts() == Counts(kept=3, new=0, again=0, changed=0, gone=0, relabelled=0, read=3)


@pytest.mark.parametrize(
    ("given", "now", "corrected"),
    [
        ("ant", "ant", []),  # the source says what it said when a person corrected it: the correction stays
        ("ant", "cow", ["cow"]),  # the source has changed its mind since
        ("ant", "bee", []),  # to what the person said
    ],
)
def test_a_class_that_a_person_corrected_stays_until_the_source_says_another(
    given: str, now: str, corrected: list[str]
) -> None:
    rest = {("train", name): File(name, 9) for name in CLASSES}
    state = state_of(index_of({("train", "a"): File(given, 1), **rest}))
    earlier = Earlier(rows_of({("train", "a"): File("bee", 1), **rest}, frozenset({("train", "a")})), {}, state)
    after = {("train", "a"): File(now, 1), **rest}
    found = find_changes(index_of(after), earlier, Reader(after)).splits["train"]
    assert found.changes.corrected["class"].to_pylist() == corrected
    # without a state the person is believed
    unknown = find_changes(index_of(after), Earlier(earlier.live, {}, state.slice(0, 0)), Reader(after))
    assert unknown.splits["train"].changes.corrected.num_rows == 0
    # a class that the source has no more can't stay
    alone = {("train", "a"): File("ant", 1), ("train", "y"): File("cow", 9)}
    found = find_changes(index_of(alone, ("ant", "cow")), earlier, Reader(alone)).splits["train"]
    assert found.changes.corrected["class"].to_pylist() == ["ant"]


def test_an_image_that_a_person_removed_stays_out_while_its_bytes_are_the_same() -> None:
    rest = {("train", name): File("bee", 9) for name in ("y", "z")}
    left_out = {("train", "a"): File("ant", 1)}
    state = state_of(index_of({**rest, **left_out}))
    earlier = Earlier(rows_of(rest), rows_of(left_out, frozenset({("train", "a")})), state)
    for file, stays_out in ((File("ant", 1), True), (File("ant", 1, 7), True), (File("ant", 2, 7), False)):
        after = {**rest, ("train", "a"): file}
        found = find_changes(index_of(after), earlier, Reader(after))
        assert (found.splits["train"].removed.tolist() == [0, -1, -1]) == stays_out
        assert found.counts().new == (0 if stays_out else 1)
        assert found.counts().gone == found.counts().changed == 0


def test_an_image_that_a_person_removed_stays_out_when_it_moves_to_another_split() -> None:
    rest = {("val", "y"): File("bee", 9), ("test", "z"): File("bee", 9)}
    left_out = {("val", "a"): File("ant", 1)}
    state = state_of(index_of({**rest, **left_out}))
    earlier = Earlier(rows_of(rest), rows_of(left_out, frozenset({("val", "a")})), state)
    for content, stays_out in ((1, True), (2, False)):
        after = {**rest, ("test", "a"): File("ant", content)}
        state_of_next = state_of(index_of(after))  # as the version after this one finds it
        for each in (earlier, Earlier(earlier.live, earlier.left_out, state_of_next)):
            found = find_changes(index_of(after), each, Reader(after))
            assert found.splits["test"].removed.tolist() == ([0, -1] if stays_out else [-1, -1])
            assert found.splits["test"].new.tolist() == ([] if stays_out else [0])


def test_of_several_images_that_people_removed_under_one_key_each_stays_out() -> None:
    rest = {("train", "y"): File("bee", 9)}
    removed = [rows_of({("train", "a"): File("ant", content)}) for content in (1, 2)]  # first 1, then what came, 2
    left_out = {"train": pa.concat_tables(each["train"] for each in removed)}
    state = state_of(index_of({**rest, ("train", "a"): File("ant", 2)}))
    for content, modified, recheck, expected in (
        (2, 0, False, 1),
        (2, 0, True, 1),
        (1, 7, False, 0),
        (3, 7, False, -1),
    ):
        after = {**rest, ("train", "a"): File("ant", content, modified)}
        found = find_changes(index_of(after), Earlier(rows_of(rest), left_out, state), Reader(after), recheck)
        assert found.splits["train"].removed.tolist() == [expected, -1]
        assert found.counts().new == int(expected < 0)


names = st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from("abcdefgh"))
sources = st.dictionaries(names, st.builds(File, st.sampled_from(CLASSES), st.integers(0, 5)), min_size=1)


@given(
    before=sources,
    changed=st.dictionaries(
        names, st.none() | st.builds(File, st.sampled_from(CLASSES), st.integers(0, 5), st.just(7))
    ),
    touched=st.sets(names),
    recheck=st.booleans(),
)
def test_the_changes_lead_from_the_data_set_to_the_source(
    before: Files, changed: dict[tuple[str, str], File | None], touched: set[tuple[str, str]], recheck: bool
) -> None:
    after = {name: File(file.class_name, file.content, 3 if name in touched else 0) for name, file in before.items()}
    after |= {name: file for name, file in changed.items() if file is not None}
    for name, file in changed.items():
        if file is None and len(after) > 1:
            after.pop(name, None)
    found, reader = found_of(before, after, recheck)
    index, rows = index_of(after), rows_of(before)
    result: dict[tuple[str, str], tuple[str, bytes]] = {}
    for split, each in found.splits.items():
        deleted = set(each.changes.deleted["row"].to_pylist())
        classes = dict(zip(*(each.changes.corrected[name].to_pylist() for name in ("row", "class")), strict=True))
        assert not deleted & classes.keys()
        for row, line in enumerate(rows[split].to_pylist() if split in rows else []):
            if row not in deleted:
                result[split, line["key"]] = (classes.get(row, line["class"]), line["source_sha256"])
        for row in each.new.tolist():
            key = index.splits[split]["key"][row].as_py()
            assert (split, key) not in result
            result[split, key] = (after[split, key].class_name, sha256(after[split, key].content))
        assert np.array_equal(np.sort(np.append(np.flatnonzero(each.kept >= 0), each.new)), np.arange(len(each.kept)))
    assert result == {name: (file.class_name, sha256(file.content)) for name, file in after.items()}
    doubtful = {
        "/".join(name)
        for name, file in after.items()
        if name in before and (recheck or before[name].modified != file.modified)
    }
    assert set(reader.keys) == doubtful
    assert found.num_read == len(reader.keys) == len(doubtful)
