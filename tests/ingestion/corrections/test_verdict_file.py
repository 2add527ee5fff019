"""The CSV of verdicts comes back from spreadsheets as it went out, and runs nothing on the way."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import SourceError
from pipeline.ingestion.corrections.cells import from_cell, to_cell
from pipeline.ingestion.corrections.verdict_file import COLUMNS, Doubt, Verdict, class_cell, csv_bytes, read_verdicts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = st.one_of(
    TEXT, st.builds("{}{}".format, st.sampled_from(["=", "+", "-", "@", "\t", "'", "'=", "''-", "\r"]), TEXT)
)


@given(ODD)
def test_every_text_comes_back_from_its_cell(text: str) -> None:
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+49", "-x", "@SUM(A1)", "\tx", "\r=x", "'=x", "007", "1e5", "1-2", "2026-11-28", "3/4", "1.50", "may 1",
     "12-Dec", "TRUE", "false", "1234567890123456", "5%", "\uff1d1"],
)  # fmt: skip
def test_what_a_spreadsheet_would_change_or_run_is_escaped(text: str) -> None:
    assert to_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["train/cat/007.jpg", "cat", "0", "42", "it's", "'cat'", "n01440764", "maybe", "10 dollars"]
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert to_cell(text) == text


def saved(path: Path, lines: list[list[str]], encoding: str, delimiter: str, end: str) -> str:
    """Writes cells as a spreadsheet does that was given another format."""
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL  # else Python leaves a lone \r without quotes
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(lines)
    path.write_bytes(out.getvalue().encode(encoding))
    return str(path)


@given(
    keys=st.lists(ODD, min_size=1, max_size=4),
    classes=st.lists(ODD, min_size=2, max_size=2),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
    end=st.sampled_from(["\r\n", "\n"]),
)
def test_the_csv_comes_back_in_every_form_in_which_spreadsheets_save_it(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[str],
    classes: list[str],
    encoding: str,
    delimiter: str,
    end: str,
) -> None:
    data = csv_bytes(Doubt("train", key, classes[0], classes[1], 0.0123) for key in keys)
    lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert tuple(lines[0]) == COLUMNS
    verdicts = ["keep", "Remove ", class_cell(classes[1]), class_cell(classes[0])]
    for line, verdict in zip(lines[1:], verdicts, strict=False):
        line[-1] = verdict
    file = saved(tmp_path_factory.mktemp("csv") / "a.csv", lines, encoding, delimiter, end)
    found = [(each.split, each.key, each.given, each.verdict, each.is_class) for each in read_verdicts(file)]
    words = [("keep", False), ("remove", False), (classes[1], True), (classes[0], True)]
    assert found == [("train", key, classes[0], *word) for key, word in zip(keys, words, strict=False)]


def test_the_csv_has_a_mark_of_utf8_and_crlf_for_excel() -> None:
    data = csv_bytes([Doubt("train", 'caf\\xe9, "a".jpg', "\u732b", "=cmd", 0.5)])
    assert data.startswith(b"\xef\xbb\xbfsplit,key,class,suggested,belief,verdict\r\n")
    assert data[3:].decode().splitlines()[1] == 'train,"caf\\xe9, ""a"".jpg",\u732b,\'=cmd,0.5,'


def test_classes_with_the_names_of_verdicts_are_told_apart(tmp_path: Path) -> None:
    for name in ("keep", "Remove", "class:a", " cat "):
        cells = [["key", "verdict"], ["a", class_cell(name)]]
        file = saved(tmp_path / "a.csv", cells, "utf-8", ",", "\n")
        assert read_verdicts(file) == [Verdict(2, "", "a", "", name, True)]


def test_lines_without_a_verdict_and_other_columns_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("who,Key,VERDICT,when\nme,a,keep,now\n\nme,b,,now\nme,c\nme,d, dog,now\n")
    assert [(each.line, each.key, each.verdict) for each in read_verdicts(str(file))] == [
        (2, "a", "keep"),
        (6, "d", "dog"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column 'key' in the first line"),
        (b"name,verdict\na,keep\n", "no column 'key' in the first line (name, verdict)"),
        (b"key;class\na;b\n", "no column 'verdict' in the first line (key, class)"),
        (b"key,verdict\na,\n", "no line has a verdict; write keep, remove or a class"),
        ("key,verdict\na,keep\nh\u00e9,keep\n".encode("cp1252"), "line 3 isn't UTF-8; save it as CSV UTF-8"),
        (b"PK\x03\x04\xff\xfe\x00", "line 1 isn't UTF-8"),
        (b"\xff\xfea", "isn't UTF-8"),
        (b'key,verdict\n"' + b"x" * 200_000 + b'",keep\n', "not a CSV (field larger than field limit"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_verdicts_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError) as error:
        read_verdicts(str(tmp_path / "a.csv"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.csv: no such file"):
        read_verdicts(str(tmp_path / "a.csv"))
