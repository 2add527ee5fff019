"""A run in its workspace: resumption after a kill, and the test for changes."""

from dataclasses import replace
from pathlib import Path

from pipeline.retraining import registry
from pipeline.retraining.workspace import is_unchanged, resume_or_start
from tests.support.trained.live import make_version, promote
from tests.support.trained.retraining import planned_run


def test_an_interrupted_run_continues_with_the_champion_that_it_began_with(tmp_path: Path) -> None:
    workspace = str(tmp_path)
    first = planned_run(workspace)
    assert resume_or_start(first) == first
    moved = registry.Move("champion", 1, "a" * 16, 0, f"promoted by this very run, killed then (night {first.id})", 1.0)
    again = resume_or_start(replace(first, champion=moved))
    assert again == first
    assert again.id == first.id
    by_others = replace(first, champion=replace(moved, reason="a person's"))
    assert resume_or_start(by_others) == by_others  # a comparison with another champion is of no use
    assert resume_or_start(first) == first
    other = replace(first, champion=moved, fingerprint="e" * 64)
    assert resume_or_start(other) == other
    assert resume_or_start(replace(other, champion=replace(moved, number=2))) != other


def test_the_id_of_a_run_is_that_of_before_candidates_were_known() -> None:
    """`Move.against` isn't part of it for champions: interrupted runs of earlier versions go on."""
    run = planned_run("w")
    assert run.id == "73bc117a84bb"
    move = registry.Move("champion", 3, "a" * 16, 2, "promoted", 1.0)
    assert replace(run, champion=move).id == "27c3f85a4c7f"


def test_a_run_whose_candidate_a_review_has_promoted_goes_on(tmp_path: Path) -> None:
    place = f"{tmp_path}/registry"
    one, two = make_version(place, "one"), make_version(place, "two")
    first = planned_run(str(tmp_path), champion=promote(place, one))
    assert resume_or_start(first) == first
    registry.nominate(place, two, f"candidate (night {first.id})", first.champion)
    promoted = promote(place, two, "review")
    assert resume_or_start(replace(first, champion=promoted)) == first


def test_nothing_has_changed_for_the_same_source_with_the_same_recipe() -> None:
    run = planned_run("w")
    latest = {"fingerprint": run.fingerprint, "recipe": run.recipe}
    assert is_unchanged(latest, run.fingerprint, run.recipe)
    assert not is_unchanged(latest, "other", run.recipe)
    assert not is_unchanged(latest, run.fingerprint, {**run.recipe, "epochs": 3})
    assert not is_unchanged(None, run.fingerprint, run.recipe)
