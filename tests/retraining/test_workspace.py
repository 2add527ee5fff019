"""A run in its workspace: resumption after a kill, and the test for changes."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.core.errors import StorageError
from pipeline.retraining import registry
from pipeline.retraining.decision.drift import Thresholds, assess
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.decision.stop import publish_stop
from pipeline.retraining.plan import plan_retraining
from pipeline.retraining.run import retrain
from pipeline.retraining.workspace import ACTIVE_NAME, interrupted_run, is_unchanged, read_latest, resume_or_start
from pipeline.storage import files
from tests.support.kills import killed_at_write
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


@pytest.mark.parametrize(
    "damaged", ["{}", "[]", '{"champion": {"alias": "champion"}, "gate": {}}', '{"champion": null}']
)
def test_a_damaged_active_file_is_named_with_the_remedy(damaged: str, tmp_path: Path) -> None:
    (tmp_path / ACTIVE_NAME).write_text(damaged)
    with pytest.raises(StorageError, match=r"active\.json: damaged .* remove it: the interrupted run starts anew"):
        interrupted_run(str(tmp_path))


def test_the_id_of_a_run_is_that_of_before_candidates_were_known() -> None:
    """`Move.against` isn't part of it for champions: interrupted runs of earlier versions go on."""
    run = planned_run("w", gate=Gate(false_promotions_per_year=None))
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


# as computed before gates had a limit of false promotions and a lock-box
OLD_ID = "7947f860bfcd"


def test_runs_without_the_newer_limits_keep_their_ids() -> None:
    run = planned_run("w", recipe={}, gate=Gate(false_promotions_per_year=None))
    assert run.id == OLD_ID
    assert replace(run, gate=replace(run.gate, night_level=0.01)).id == OLD_ID
    others = [Gate(), Gate(false_promotions_per_year=2.0), Gate(false_promotions_per_year=None, lock_box=0.2)]
    assert len({OLD_ID, *(replace(run, gate=each).id for each in others)}) == 4


def test_a_run_that_was_interrupted_before_there_was_a_limit_goes_on_without_it(tmp_path: Path) -> None:
    """Its folder, with the training in it, is found by its old ID."""
    planned = planned_run(str(tmp_path), recipe={})
    stored = asdict(planned)
    for name in ("false_promotions_per_year", "lock_box", "night_level"):
        del stored["gate"][name]
    files.write_json(files.join(str(tmp_path), ACTIVE_NAME), stored)
    resumed = resume_or_start(planned)
    assert resumed.id == OLD_ID
    assert resumed.gate.false_promotions_per_year is None
    assert interrupted_run(str(tmp_path)) == resumed
    stricter = replace(planned, gate=replace(planned.gate, level=0.01))
    assert resume_or_start(stricter) == stricter


def test_a_lock_box_has_data_sets_of_its_own() -> None:
    run = planned_run("w")
    assert replace(run, gate=Gate(lock_box=0.2)).dataset == f"{run.dataset}-lock-box-0.2"


def test_a_run_that_was_killed_after_its_decision_was_published_is_finished(tmp_path: Path) -> None:
    source, workspace = tmp_path / "source", str(tmp_path / "work")
    source.mkdir()
    (source / "a.jpg").write_bytes(b"a")
    run = resume_or_start(plan_retraining(source, workspace, "digits").run)
    details, drift = {"rows": 10, "seconds": {}, "finished": 5.0}, assess(0.3, 0.0, None, Thresholds())
    writes = 4  # decision, page, latest.json; then active.json is deleted
    assert killed_at_write(writes, lambda: publish_stop(run, drift, details))
    assert read_latest(workspace) is not None
    assert files.exists(f"{workspace}/{ACTIVE_NAME}")
    assert not plan_retraining(source, workspace, "digits").has_work
    assert retrain(source, workspace, "digits").status == "unchanged"
    assert not files.exists(f"{workspace}/{ACTIVE_NAME}")
