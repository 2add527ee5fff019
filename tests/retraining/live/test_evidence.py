"""What two models answered: under other names of classes, and for other images under the same keys."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.dataset.parquet import parquet_bytes
from pipeline.retraining import registry
from pipeline.retraining.live import store
from pipeline.retraining.live.evidence import Evidence
from pipeline.retraining.live.review import review
from pipeline.retraining.workspace import night_of, renames_of
from pipeline.storage import files
from tests.support.trained.live import make_version, promote, put_labels, put_traffic
from tests.support.trained.retraining import stored_decision


def test_a_class_that_was_renamed_or_merged_is_no_disagreement(tmp_path: Path) -> None:
    place = f"{tmp_path}/registry"
    old = make_version(place, "one", classes=("cat", "dog", "owl"))
    new = make_version(place, "two", classes=("owl", "pet", "uhu"))
    registry.move(place, "challenger", new, "trained in night abc", None)
    pairs = (old, new)
    put_traffic(place, pairs, ["cat", "dog", "owl", "cat"], ["pet", "pet", "owl", "owl"])
    assert Evidence(place).pair(*pairs).disagreements == 3
    classes = {"renamed": {}, "merged": {"pet": ["cat", "dog"]}}
    files.write_json(f"{tmp_path}/nights/abc/decision.json", stored_decision(night="abc", classes=classes))
    assert renames_of(place, new) == {"cat": "pet", "dog": "pet"}
    assert renames_of(place, old) == {}
    put_labels(place, {"day/0": "pet", "day/1": "cat", "day/2": "owl", "day/3": "dog"})
    for one, other, rights in ((old, new, (4, 3)), (new, old, (3, 4))):
        found = Evidence(place).pair(one, other)
        assert (found.disagreements, found.labelled, found.correct) == (1, 4, rights)


def at_time(head: type[store.Traffic], time: float, first: str, second: str, _: float) -> store.Traffic:
    return head(first, second, time)


def test_failures_and_disagreement_are_those_of_the_newest_images_and_labels_count_by_month(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{tmp_path}/registry"
    one, two = make_version(place, "one"), make_version(place, "two")  # created in 1970
    for day, answers in ((3, "a" * 30), (29, "a" * 10), (31, "aaaaaabb-b")):
        monkeypatch.setattr(store, "Traffic", partial(at_time, store.Traffic, day * 86_400.0))
        put_traffic(
            place, (one, two), ["a"] * len(answers), [None if each == "-" else each for each in answers], f"{day}"
        )
        monkeypatch.undo()
        put_labels(place, {f"{day}/{row}": "a" for row in range(len(answers))})
    recent, ever = Evidence(place, 10), Evidence(place)
    for evidence, images in ((recent, 10), (ever, 50)):
        alone, pair = evidence.alone(two), evidence.pair(one, two)
        assert (alone.images, alone.failures, alone.labelled, alone.correct) == (images, 1, 49, 46)
        assert alone.month == (2, 9, 6)
        assert (pair.images, pair.failures, pair.answered, pair.disagreements) == (images, (0, 1), images - 1, 3)
        assert (pair.labelled, pair.month) == (49, (2, 3, 0))
    assert Evidence(place, 5).pair(one, two).answered == 4


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return call


def test_a_review_lists_once_and_reads_the_records_of_its_versions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{tmp_path}/registry"
    for name in ("old", "older", "now"):
        promote(place, make_version(place, name))
        put_traffic(place, (make_version(place, name), None), ["a"] * 3, name=name)
    put_labels(place, {"now/0": "a", "old/0": "a", "nothere": "a"})
    read, listed = list[Any](), list[Any]()
    monkeypatch.setattr(store, "read_traffic", counted(store.read_traffic, read))
    monkeypatch.setattr(store, "traffic_uris", counted(store.traffic_uris, listed))
    labels = review(place).labels
    assert len(read) == len(listed) == 1
    assert labels.text() == "3 lines; 2 of an image that these models weren't asked about"


def test_the_night_of_a_version_is_found_without_reading_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, moved = f"{tmp_path}/registry", None
    versions = [make_version(place, name) for name in "abcdefgh"]
    for number, version in enumerate(versions):
        moved = registry.move(place, "challenger", version, f"trained in night {number}", moved)
    read = list[Any]()
    monkeypatch.setattr(files, "read_json", counted(files.read_json, read))
    assert night_of(str(tmp_path), versions[-2]) == "6"
    assert len([uri for (uri,) in read if "/history/" in uri]) <= 2
    assert night_of(str(tmp_path), versions[0]) == "0"
    added = make_version(place, "added")
    assert night_of(str(tmp_path), added) is None
    later = files.read_json(f"{place}/versions/{added}/version.json")
    files.write_json(f"{place}/versions/{added}/version.json", {**later, "created": moved.time + 1e6})
    read.clear()
    assert night_of(str(tmp_path), added) is None
    assert len([uri for (uri,) in read if "/history/" in uri]) == 0


def _put(place: str, name: str, versions: tuple[str, str], answer: str, contents: list[str | None] | None) -> None:
    """Stores answers of two versions for three images of the keys 0, 1 and 2; contents: None for a record of before."""
    columns: dict[str, object] = {"key": ["0", "1", "2"], "first": [answer] * 3, "second": [answer] * 3}
    columns |= {"first_seconds": [0.1] * 3, "second_seconds": [0.1] * 3, "error": [None] * 3, "content": contents}
    schema = store.SCHEMA if contents else pa.schema(list(store.SCHEMA)[:-1])
    head = store.Traffic(*versions, time=float(name))
    table = pa.table({each: columns[each] for each in schema.names}, schema=schema)
    if contents:
        store.write_traffic(place, name, head, iter([table]))
        return
    table = table.replace_schema_metadata(store._with_head(head).metadata)
    files.write_bytes(store.traffic_uri(place, *versions, name), parquet_bytes(table))


@pytest.mark.parametrize(
    ("contents", "images", "labelled", "ambiguous"),
    [
        ([["a", "b", "c"], ["d", "b", "e"]], 5, 1, 2),  # two inputs, whose images have the same names
        ([["a", "b", "c"], ["a", "b", "c"]], 3, 3, 0),  # the same images, predicted twice
        ([None, ["a", "b", "c"]], 3, 3, 0),  # the first record is of before: it may be the same images
        ([["a", "b", "c"], None], 3, 3, 0),
        ([None, None], 3, 3, 0),
        ([None, [None, "b", "c"]], 3, 3, 0),  # one that couldn't be read
    ],
)
def test_labels_count_for_images_and_not_for_keys(
    contents: list[list[str | None] | None], images: int, labelled: int, ambiguous: int, tmp_path: Path
) -> None:
    place = f"{tmp_path}/registry"
    pair = make_version(place, "one"), make_version(place, "two")
    for number, each in enumerate(contents):
        _put(place, str(number), pair, "ab"[number], each)
    put_labels(place, {"0": "b", "1": "b", "2": "b"})
    found, alone = Evidence(place).pair(*pair), Evidence(place).alone(pair[1])
    assert (found.images, found.labelled, found.correct) == (images, labelled, (labelled, labelled))
    assert (alone.images, alone.labelled, alone.correct) == (images, labelled, labelled)
    assert Evidence(place).label_counts(list(pair)).ambiguous == ambiguous
