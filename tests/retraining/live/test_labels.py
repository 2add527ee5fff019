"""CSVs of late labels: what counts, what is counted, and what is refused."""

from pathlib import Path

import pytest

from pipeline.core.errors import RegistryError
from pipeline.retraining.live import store
from pipeline.retraining.live.labels import LabelCounts, check_labels, read_labels, stored_labels


@pytest.mark.parametrize(
    ("text", "labels", "counts"),
    [
        ("key,label\nx,a\ny,b\n", {"x": "a", "y": "b"}, LabelCounts(2)),
        ("\ufefflabel;Key;more\r\na;x;1\r\n\r\n", {"x": "a"}, LabelCounts(1)),  # as a spreadsheet writes it
        ("key,label\nx,a\nx,a\n", {"x": "a"}, LabelCounts(2, repeated=1)),
        ("key,label\nx,a\nx,b\ny,b\nx,a\n", {"y": "b"}, LabelCounts(4, repeated=1, contradicting=1)),
        ("key,label\nx,\n,a\ny\nz, b \n", {"z": "b"}, LabelCounts(4, incomplete=3)),
        ('key,label\n"x,1",a\n', {"x,1": "a"}, LabelCounts(1)),
    ],
)
def test_what_a_file_says(text: str, labels: dict[str, str], counts: LabelCounts, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert read_labels(str(tmp_path / "labels.csv")) == (labels, counts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file; give a CSV with the columns key and label"),
        (b"", "no column 'key'"),
        (b"name,label\nx,a\n", r"no column 'key' in the first line \(name, label\); the columns are key, label"),
        (b"key,class\nx,a\n", "no column 'label'"),
        (b"key,label\n", "none of 0 lines gives a key and one label"),
        (b"key,label\nx,a\nx,b\n", "none of 2 lines"),
        (b"key,label\nx,\xff\n", "line 2 isn't UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "labels.csv"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_line(data: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RegistryError, match=message) as error:
        check_labels(str(file))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("labels=")


def test_a_correction_that_is_taken_back_is_out_of_force(tmp_path: Path) -> None:
    place = str(tmp_path)
    for label in ("a", "b", "a", "a"):
        store.add_labels(place, f"key,label\nx,{label}\n".encode())
    assert stored_labels(place)[0] == {"x": "a"}
    assert len(store.label_uris(place)) == 3


def test_files_are_kept_once_and_later_ones_go_first(tmp_path: Path) -> None:
    place = str(tmp_path)
    first = store.add_labels(place, b"key,label\nx,a\ny,a\n")
    second = store.add_labels(place, b"key,label\nx,b\n")
    assert store.add_labels(place, b"key,label\nx,b\n") == second
    assert store.label_uris(place) == [first, second]
    assert stored_labels(place) == ({"x": "b", "y": "a"}, LabelCounts(3))
    assert store.is_labels_intact(first)
    Path(first).write_bytes(b"key,label\nx,c\n")
    assert not store.is_labels_intact(first)
