"""The ingest of a retraining run: what is new since the run before."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.progress import silent
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.version import Changes
from pipeline.ingestion.changes.onto import edits_by_people
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.sources import open_source
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining import registry, stages
from pipeline.retraining.budget import Budget
from pipeline.retraining.decision import promotion
from pipeline.retraining.decision.lock_box import Reading
from pipeline.retraining.decision.promotion import Contest, decide_promotion
from pipeline.retraining.decision.promotion_gate import Check, Decision, Gate
from pipeline.retraining.decision_file import LATEST_NAME
from pipeline.retraining.plan import Plan, RetrainOptions
from pipeline.retraining.run_settings import given_settings
from pipeline.retraining.stages import ingest_source
from pipeline.retraining.workspace import RetrainingRun
from pipeline.storage import files
from pipeline.versions import drop_version
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tree
from tests.support.pictures.versions import deletions, make_version
from tests.support.trained.live import make_version as trained_version
from tests.support.trained.live import promote
from tests.support.trained.predictions import predictions
from tests.support.trained.retraining import planned_run, stored_decision


@pytest.fixture
def nights(tmp_path: Path) -> tuple[RetrainingRun, RetrainingRun]:
    """A finished run, and one of the same source with an image more."""
    tree, workspace = make_tree(tmp_path / "tree"), str(tmp_path / "work")
    monday = planned_run(workspace, source=str(tree), fingerprint="1" * 64)
    ingest_here(open_source(str(tree), spool=str(tmp_path / "spool")), monday.dataset, shard_size=SHARD_BYTES)
    # as it was written before the workspace was moved
    files.write_json(
        files.join(workspace, LATEST_NAME), stored_decision(dataset="/elsewhere/work/datasets/111111111111")
    )
    (tree / "train" / "ant" / "new.jpg").write_bytes(jpeg(5000))
    return monday, replace(monday, fingerprint="2" * 64)


def bases_of(data: manifest.Manifest) -> list[str]:
    return [] if data.version is None else [base.uri for base in data.version.bases.values()]


def test_a_run_ingests_what_is_new_since_the_run_before(nights: tuple[RetrainingRun, RetrainingRun]) -> None:
    monday, tuesday = nights
    data = ingest_source(tuesday, RetrainOptions(), silent)
    assert bases_of(data) == ["../111111111111"]
    assert data.splits["train"].rows == 19
    own = [
        shard
        for split in manifest.load_stored(tuesday.dataset).splits.values()
        for shard in split.shards
        if not shard.base
    ]
    assert [shard.rows for shard in own] == [1]
    assert ingest_source(tuesday, RetrainOptions(), silent) == data  # it is there already
    assert bases_of(ingest_source(monday, RetrainOptions(), silent)) == []


def test_a_run_goes_on_from_what_people_have_corrected(
    nights: tuple[RetrainingRun, RetrainingRun], caplog: pytest.LogCaptureFixture
) -> None:
    monday, tuesday = nights
    folder = files.resolve(monday.dataset, "../")
    for parent, name, row in ((monday.dataset, "corrected", 0), (f"{folder}/corrected", "corrected-again", 1)):
        changes = Changes(deletions({row: "corrected: removed"}))
        make_version(parent, f"{folder}/{name}", {"train": changes})
    data = ingest_source(tuesday, RetrainOptions(), silent)
    assert data.version is not None
    assert data.version.parent == manifest.load(f"{folder}/corrected-again").digest
    assert data.splits["train"].rows == 17
    shutil.rmtree(tuesday.dataset)
    make_version(monday.dataset, f"{folder}/other", {"train": Changes(deletions({3: "corrected: removed"}))})
    assert ingest_source(tuesday, RetrainOptions(), silent).splits["train"].rows == 19
    assert "are corrections of one data set" in caplog.text


def test_a_run_compacts_what_is_read_slowly_and_keeps_what_people_have_removed(
    nights: tuple[RetrainingRun, RetrainingRun],
) -> None:
    monday, tuesday = nights
    corrected = f"{files.resolve(monday.dataset, '../')}/corrected"
    removed = dict.fromkeys((0, 1, 2, 3, 6, 7, 8, 12), "corrected: removed")  # of 36 rows: some of each class
    make_version(monday.dataset, corrected, {"train": Changes(deletions(removed))})
    assert stages._parent_of(tuesday) == f"{corrected}-compacted"
    data = ingest_source(tuesday, RetrainOptions(), silent)
    assert bases_of(data) == ["../corrected-compacted"]
    assert data.splits["train"].rows == 11
    assert len(edits_by_people(tuesday.dataset, manifest.load_stored(tuesday.dataset))) == 8
    assert stages._parent_of(tuesday) == f"{corrected}-compacted"  # as it is


def test_corrections_outlive_the_data_sets_that_they_were_made_of(
    nights: tuple[RetrainingRun, RetrainingRun], caplog: pytest.LogCaptureFixture
) -> None:
    monday, tuesday = nights
    folder = files.resolve(monday.dataset, "../")
    corrected, again = f"{folder}/corrected", f"{folder}/corrected-again"
    make_version(monday.dataset, corrected, {"train": Changes(deletions({0: "corrected: removed"}))})
    make_version(corrected, f"{folder}/unfinished", {})  # of a run that was stopped: no person has changed anything
    assert stages._parent_of(tuesday) == corrected
    make_version(corrected, again, {"train": Changes(deletions({1: "corrected: removed"}))})
    assert stages._parent_of(tuesday) == again
    drop_version(monday.dataset)
    assert stages._parent_of(tuesday) == again
    drop_version(corrected)
    assert stages._parent_of(tuesday) == again
    drop_version(again)
    assert caplog.text.count("none is used") == 0
    drop_version(f"{folder}/unfinished")
    assert stages._parent_of(tuesday) is None


@pytest.mark.ray
def test_a_run_ingests_everything_where_that_is_better(
    nights: tuple[RetrainingRun, RetrainingRun], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monday, tuesday = nights
    whole = ingest_source(replace(tuesday, workspace=f"{tuesday.workspace}-new"), RetrainOptions(), silent)
    monkeypatch.setattr(stages, "why_compact", lambda stored: "too many rows are left out")
    assert ingest_source(tuesday, RetrainOptions(), silent) == whole
    shutil.rmtree(tuesday.dataset)
    monkeypatch.setattr(
        stages, "edits_by_people", lambda uri, stored: [("a.jpg", "", "corrected: removed")]
    )  # they would be lost
    assert bases_of(ingest_source(tuesday, RetrainOptions(), silent)) == ["../111111111111"]
    monkeypatch.undo()
    shutil.rmtree(tuesday.dataset)
    shutil.rmtree(monday.dataset)  # the parent is gone
    assert ingest_source(tuesday, RetrainOptions(), silent).digest == whole.digest


def night_of(run: RetrainingRun) -> stages.Stages:
    plan = Plan(run, given_settings("digits", None), None)
    return stages.Stages(plan, RetrainOptions(), None, Budget(None), silent)


def test_no_gain_is_stated_where_the_models_have_no_class_in_common() -> None:
    right = np.arange(100) >= 40
    contest = Contest(predictions(right), predictions(~right), tuple("abcdefghij"), np.ones(100, bool))
    gain = stages._gain(contest)
    assert gain is not None
    assert gain["gain"] == -0.2
    strange = ClassMap(("x", "y"), contest.classes)
    assert stages._gain(replace(contest, class_map=strange)) is None
    assert stages._gain(replace(contest, champion=None)) is None


def test_two_nights_spend_as_said_and_the_second_refuses_what_the_first_had_promoted(tmp_path: Path) -> None:
    """38 won and 22 lost: p = 0.026, and the levels are 0.042 and 0.021."""
    numbers = np.arange(1000)
    champion, challenger = (predictions(numbers >= 38), predictions((numbers < 38) | (numbers >= 60)))
    contest, decisions = Contest(champion, challenger, tuple("abcdefghij"), np.ones(1000, bool)), []
    for fingerprint in ("1" * 64, "2" * 64, "1" * 64):
        move = registry.Move("champion", 1, "c" * 16, 0, "", 0.0)
        run = planned_run(str(tmp_path), fingerprint=fingerprint, champion=move)
        night = night_of(run)._night_level()
        assert night is not None
        gate = replace(run.gate, night_level=night.level)
        decisions.append(decide_promotion(contest, gate))
        expected = 1 / 24 if fingerprint[0] == "1" else 1 / 48
        assert decisions[-1].checks[0].allowed == night.level == pytest.approx(expected, rel=1e-3)
    assert [each.promote for each in decisions] == [True, False, True]  # the third is the first, resumed after a kill
    assert "may be chance (level 0.0208)" in decisions[1].reason
    assert decisions[0].changes == decisions[1].changes  # the other checks keep the gate's own level


def test_a_first_model_and_a_gate_without_a_limit_spend_nothing(tmp_path: Path) -> None:
    assert night_of(planned_run(str(tmp_path)))._night_level() is None
    move = registry.Move("champion", 1, "c" * 16, 0, "", 0.0)
    run = planned_run(str(tmp_path), champion=move, gate=Gate(false_promotions_per_year=None))
    assert night_of(run)._night_level() is None
    assert list(tmp_path.iterdir()) == []


def test_the_latency_by_which_a_run_decides_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([(1.0, 1.2), (1.0, 9.9)])  # the machine is busy when the run is resumed
    monkeypatch.setattr(promotion, "measure_latency", lambda run: next(measured))
    run = planned_run(str(tmp_path))
    assert [night_of(run)._latency() for _ in range(2)] == [(1.0, 1.2)] * 2


def test_the_lock_box_is_not_read_for_weights_that_were_sent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, readings = f"{tmp_path}/registry", list[str]()
    champion = promote(place, trained_version(place, "one"))
    run = planned_run(str(tmp_path), champion=champion, gate=Gate(lock_box=0.2))
    sent_back, fresh = trained_version(place, "two"), trained_version(place, "three")
    promote(place, sent_back)
    registry.rollback(place, reason=f"worse (return {0:012x})")
    reading = Reading(Check("lock-box", True, 1.0, 0.05, "+1 point"), 10, {}, 1)

    def read(*_: object) -> Reading:
        readings.append("read")
        return reading

    monkeypatch.setattr(stages, "read_lock_box", read)
    monkeypatch.setattr(stages.Stages, "_stage", lambda *_: nullcontext())
    monkeypatch.setattr(stages.Stages, "_evaluation_session", lambda _: nullcontext())
    better = Decision(True, (Check("gain", True, 0.01, 0.05, "+3 points"),))
    data = manifest.Manifest("data", ("a", "b"), 0, {})
    for version, promoted in ((sent_back, False), (fresh, True)):
        decision, found = night_of(run)._confirm(better, version, data, [])
        assert decision.promote is promoted
        assert (found, len(readings)) == ((reading, 1) if promoted else (None, 0))


def test_what_people_have_removed_from_val_does_not_come_back_in_the_lock_box(
    nights: tuple[RetrainingRun, RetrainingRun],
) -> None:
    monday, tuesday = nights
    tuesday = replace(tuesday, gate=Gate(lock_box=0.5))

    def keys(uri: str, split: str) -> list[str]:
        found: list[str] = read_split_provenance(uri, manifest.load(uri).split(split), ["key"])["key"].to_pylist()
        return found

    before = ingest_source(tuesday, RetrainOptions(), silent)
    moved = keys(tuesday.dataset, "test")
    row = keys(monday.dataset, "val").index(moved[0])
    shutil.rmtree(tuesday.dataset)
    corrected = f"{files.resolve(monday.dataset, '../')}/corrected"
    make_version(monday.dataset, corrected, {"val": Changes(deletions({row: "corrected: removed"}))})
    data = ingest_source(tuesday, RetrainOptions(), silent)
    assert keys(tuesday.dataset, "test") == moved[1:]
    assert moved[0] not in keys(tuesday.dataset, "val")
    assert data.source_digest == before.source_digest  # it is of the source, whatever people say
