"""The page of doubtful labels in headless Chromium: verdicts by keyboard and mouse are kept, and saved as a CSV."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.manifest import load
from pipeline.dataset.mixture import mix
from pipeline.dataset.parquet import read_split_provenance
from pipeline.evaluation.analysis.label_issues import LabelIssue
from pipeline.evaluation.pages.label_review import PAGE_NAME, write_review
from pipeline.ingestion import correct
from pipeline.ingestion.corrections.verdict_file import read_verdicts
from pipeline.ingestion.sources import open_source
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, write_tree

CLASSES = ("=cmd", "007", "<!--<script>", "keep")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A data set with classes and keys that a page, a spreadsheet or a shell could take for something else."""
    tree = {
        f"{split}/{name}/{odd}{number}.jpg": jpeg(number + 10 * len(name))
        for split in ("train", "val")
        for name in CLASSES
        for number in range(3)
        for odd in ("@", "a, 'b' \"c\" ")
    }
    index = open_source(str(write_tree(tmp_path / "raw", tree)), spool=str(tmp_path))
    ingest_here(index, str(tmp_path / "my photos"))
    return str(tmp_path / "my photos")


def review(uri: str, out: Path) -> tuple[list[str], list[str]]:
    """Writes the page with every training row in doubt. Returns the commands and the keys, in the page's order."""
    data = load(uri)
    table = read_split_provenance(uri, data.split("train"), ["key", "label"])
    issues = [
        LabelIssue(row, label, (label + 1) % len(data.classes), 0.001 * row)
        for row, label in enumerate(table["label"].to_pylist())
    ]
    keys = table["key"].to_pylist()
    return write_review(str(out), uri, data, issues, np.arange(len(keys)), keys), keys


def saved(shown: Any, button: str, path: Path) -> str:
    with shown.expect_download() as download:
        shown.get_by_role("button", name=button).click()
    assert download.value.suggested_filename == button.removeprefix("Save ")
    download.value.save_as(path)
    return str(path)


def test_verdicts_are_given_by_keyboard_and_mouse_kept_and_saved(photos: str, browser: Any, tmp_path: Path) -> None:
    commands, keys = review(photos, tmp_path / "out")
    data = load(photos)
    labels = read_split_provenance(photos, data.split("train"), ["label"])["label"].to_pylist()
    names = [data.classes[label] for label in labels]
    shown = browser.new_page()
    problems: list[str] = []
    shown.on("pageerror", lambda error: problems.append(str(error)))
    place = (tmp_path / "out" / PAGE_NAME).as_uri()
    shown.goto(place)
    assert shown.locator("#count").text_content() == f"None of {len(keys)} decided"
    for key in ("n", "s", "k", "r"):  # to the first card; suggested, keep, remove
        shown.keyboard.press(key)
    cards = shown.locator(".doubt")
    shown.keyboard.press("o")  # the list of classes, which is filled when it is needed
    cards.nth(3).get_by_role("combobox").select_option("keep")
    cards.nth(6).get_by_role("radio").nth(0).check()
    cards.nth(6).get_by_role("radio").nth(2).check()  # another class, but none is chosen
    cards.nth(4).get_by_label("remove the image").check()
    cards.nth(4).get_by_role("button", name="undecided").click()
    cards.nth(5).get_by_role("radio").nth(1).check()
    assert shown.locator("#count").text_content() == f"5 of {len(keys)} decided"
    shown.goto(place)
    assert shown.locator("#count").text_content() == f"5 of {len(keys)} decided"
    assert cards.nth(2).get_by_label("remove the image").is_checked()
    file = saved(shown, "Save verdicts.csv", tmp_path / "verdicts.csv")
    found = [(each.key, each.given, each.verdict, each.is_class) for each in read_verdicts(file)]
    after = [data.classes[(data.classes.index(name) + 1) % len(data.classes)] for name in names]
    expected = [(after[0], True), ("keep", False), ("remove", False), ("keep", True), (after[5], True)]
    assert found == [(keys[at], names[at], *each) for at, each in zip((0, 1, 2, 3, 5), expected, strict=True)]
    assert problems == []
    assert commands == [shown.locator("pre").text_content().strip()]
    assert commands[0].endswith(f"--correct verdicts.csv --onto '{photos}' --out '{photos}-corrected'")
    done = correct(file, photos, f"{photos}-corrected")
    assert done.verdicts.removed == 1
    assert review(photos, tmp_path / "next")[0][0].endswith("-corrected-2'")
    assert review(done.uri, tmp_path / "last")[0][0].endswith("-corrected-2'")
    shown.close()


def test_each_data_set_of_a_mixture_gets_a_file_of_its_own(photos: str, browser: Any, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "other")
    mix({"a": photos, "b": str(tmp_path / "other")}, str(tmp_path / "mixed"))
    commands, keys = review(str(tmp_path / "mixed"), tmp_path / "out")
    assert [command.split(" --onto ")[0].split()[-1] for command in commands] == ["verdicts-a.csv", "verdicts-b.csv"]
    shown = browser.new_page()
    shown.goto((tmp_path / "out" / PAGE_NAME).as_uri())
    last = shown.locator(".doubt").last
    last.get_by_label("remove the image").check()
    file = saved(shown, "Save verdicts-b.csv", tmp_path / "b.csv")
    assert [each.key for each in read_verdicts(file)] == [keys[-1].removeprefix("b/")]
    done = correct(file, tmp_path / "other", tmp_path / "other-corrected")
    assert (done.verdicts.removed, done.manifest.rows) == (1, load(photos).rows - 1)
    assert (tmp_path / "out" / "label-problems-a.csv").exists()
    shown.close()


def test_a_page_holds_as_many_pictures_as_a_browser_opens(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.pages.label_review._MOST_BYTES", 20_000)
    _, keys = review(photos, tmp_path / "out")
    page = (tmp_path / "out" / PAGE_NAME).read_text()
    shown = page.count("<fieldset")
    assert 0 < shown < len(keys)
    assert f"These are the first {shown}; " in page
    assert len((tmp_path / "out" / "label-problems.csv").read_text().splitlines()) == 1 + len(keys)
