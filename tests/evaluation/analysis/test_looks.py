"""A split that was kept apart counts how often it was looked at."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.analysis.looks import looks_text, note_look
from pipeline.evaluation.certificate import Certificate

TEST = Certificate("a" * 64, "b" * 64, "test", 0, 100, "none", "c" * 64, "d" * 64)


def test_the_second_evaluation_of_test_names_the_first_also_by_another_checkpoint(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert note_look(run, TEST) == []
    assert note_look(f"{run}/checkpoints/000000200", replace(TEST, checkpoint_sha256="e" * 64)) != []
    (first, second) = note_look(run, TEST) or []
    assert first <= second
    assert "evaluated before" in looks_text([first])
    assert f"on {second}, 2 times in all" in looks_text([first, second])
    assert "first evaluation" in looks_text([])


@pytest.mark.parametrize("split", ["val", "train"])
def test_other_splits_may_be_looked_at_at_will(tmp_path: Path, split: str) -> None:
    assert note_look(str(tmp_path), replace(TEST, split=split)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_other_test_images_does_not_count(tmp_path: Path) -> None:
    note_look(str(tmp_path), TEST)
    assert note_look(str(tmp_path), replace(TEST, dataset_digest="f" * 64)) == []
