"""A run in its workspace: resumption after a kill, and the test for changes."""

from dataclasses import replace
from pathlib import Path

from pipeline.retraining import registry
from pipeline.retraining.workspace import is_unchanged, resume_or_start
from tests.support.trained.retraining import planned_run


def test_an_interrupted_run_continues_with_the_champion_that_it_began_with(tmp_path: Path) -> None:
    workspace = str(tmp_path)
    first = planned_run(workspace)
    assert resume_or_start(first) == first
    moved = registry.Move("champion", 1, "a" * 16, 0, "promoted by this very run, which was killed then", 1.0)
    again = resume_or_start(replace(first, champion=moved))
    assert again == first
    assert again.id == first.id
    other = replace(first, champion=moved, fingerprint="e" * 64)
    assert resume_or_start(other) == other
    assert resume_or_start(replace(other, champion=None)) == other


def test_nothing_has_changed_for_the_same_source_with_the_same_recipe() -> None:
    run = planned_run("w")
    latest = {"fingerprint": run.fingerprint, "recipe": run.recipe}
    assert is_unchanged(latest, run.fingerprint, run.recipe)
    assert not is_unchanged(latest, "other", run.recipe)
    assert not is_unchanged(latest, run.fingerprint, {**run.recipe, "epochs": 3})
    assert not is_unchanged(None, run.fingerprint, run.recipe)
