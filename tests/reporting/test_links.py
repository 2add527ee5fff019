from pathlib import Path

import pytest

from pipeline.reporting.links import existing, relative_link


@pytest.mark.parametrize(
    ("folder", "target", "link"),
    [
        ("/runs/a", "/runs/a/result.json", "result.json"),
        ("/runs/a/evaluation-val", "/runs/a/report.html", "../report.html"),
        ("/runs/a", "/data/photos/quality.html", "../../data/photos/quality.html"),
        ("/runs/a", "/runs/a/100 % new?.html", "100%20%25%20new%3F.html"),
        ("s3://b/runs/a", "s3://b/data/quality.html", "../../data/quality.html"),
        ("s3://b/runs/a?region=eu", "s3://b/data/quality.html?region=eu", "../../data/quality.html"),
        ("s3://b/runs/a", "s3://other/data/quality.html", None),  # no path leads from one bucket into another
        ("s3://b/runs", "gs://b/data.html", None),
        ("/runs/a", "s3://b/data/quality.html", None),
        ("", "/runs/a/report.html", None),
        ("/runs/a", None, None),
    ],
)
def test_a_link_is_relative_to_the_page_or_there_is_none(folder: str, target: str | None, link: str | None) -> None:
    assert relative_link(folder, target) == link


def test_only_files_that_exist_are_linked(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("")
    assert existing(str(tmp_path / "a.html"), str(tmp_path / "b.html"), None) == [str(tmp_path / "a.html")]
