"""Files that retraining and its registry read back: one of another form is read, or refused in one line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.predictions import read_predictions
from pipeline.models import checkpoint
from pipeline.models.load import find_model
from pipeline.retraining import registry, registry_check, workspace
from pipeline.retraining.live.candidates import needs_labels, pending_candidate, sent_back
from pipeline.retraining.notices import outbox
from pipeline.retraining.notices.status_file import Status, read_status, write_status
from pipeline.retraining.overview.metrics import metrics_of
from pipeline.retraining.overview.nights import read_nights
from pipeline.retraining.overview.overview import read_overview
from pipeline.retraining.overview.page import render_overview
from pipeline.storage import files
from pipeline.training.replay import recorded_losses
from pipeline.training.resume import read_starts
from tests.support.damage import check_forms
from tests.support.trained.live import make_version, nominate, promote
from tests.support.trained.retraining import stored_decision


def _page(work: str) -> None:
    overview = read_overview(work)
    render_overview(overview)
    metrics_of(overview)


def _latest(work: str) -> None:
    latest = workspace.read_latest(work)
    workspace.latest_dataset(work, latest)
    workspace.is_unchanged(latest, "f", {})


def _aliases(place: str) -> None:
    registry.aliases(place)
    pending_candidate(place)
    needs_labels(place)
    sent_back(place)


def _history(place: str) -> None:
    for alias in (registry.CHAMPION, registry.CANDIDATE):
        registry.history(place, alias)
    registry_check.verify(place)


def _newest(run: str) -> None:
    newest = checkpoint.latest(run)
    assert newest is not None
    find_model(newest)


READERS: dict[str, Callable[[str], Any]] = {
    "latest.json": _latest,
    "nights/a/decision.json": _page,
    "nights.json": _page,
    "status.json": _page,
    "notices/*.json": outbox.undelivered,
    "registry/aliases/champion.json": lambda work: _aliases(f"{work}/registry"),
    "registry/aliases/candidate.json": lambda work: _aliases(f"{work}/registry"),
    "registry/history/champion/000001.json": lambda work: _history(f"{work}/registry"),
    "registry/history/candidate/000001.json": lambda work: _history(f"{work}/registry"),
    "registry/versions/*/version.json": lambda work: registry.versions(f"{work}/registry"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two decisions, a champion, a candidate and an undelivered message."""
    path = tmp_path_factory.mktemp("work")
    place = f"{path}/registry"
    one, two = make_version(place, "one"), make_version(place, "two")
    promote(place, one)
    nominate(place, two)
    changes = {"added": {"train": 2}, "removed": {}, "changed": {}, "classes_added": ["c"], "classes_removed": []}
    decision = stored_decision(
        finished=1.8e9,
        status="candidate",
        reason="better",
        challenger=two,
        champion_before=one,
        correct={"champion": 80, "challenger": 90},
        fair_rows=100,
        gain={"gain": 0.1, "low": 0.05, "high": 0.15},
        data={"rows": {"train": 900, "val": 100}, "since": "b", "quarantined_share": 0.0, **changes},
        drift={"class_mix": 0.1, "brightness": None, "warnings": ["far"], "thresholds": {"class_mix": 0.05}},
        sequential={"night": "a", "time": 1.8e9, "level": 0.01, "per_year": 1.0, "spent": 0.01},
        seconds={"train": 9.0},
        plan={"estimate": {"seconds": {"train": 8.0}, "basis": "x"}, "cost_per_hour": 2.0, "resumed": False},
        report=f"{path}/nights/a/challenger/report.html",
        recipe={"name": "digits", "epochs": 3},
    )
    files.write_json(f"{path}/nights/a/decision.json", decision)
    files.write_json(f"{path}/nights/b/decision.json", stored_decision(night="b"))
    files.write_json(f"{path}/latest.json", decision)
    read_nights(str(path), update=True)
    write_status(str(path), Status("kept", "no gain", 1.8e9, 1.8e9, 1.7e9))
    outbox.put(str(path), "message_1", {"type": "retraining.kept"})
    return path


_LONGEST = ("nights/a/decision.json", "nights.json")  # a page for each form


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _LONGEST else name for name in READERS]
)
def test_a_file_of_another_form_is_read_or_refused_in_one_line(work: Path, name: str) -> None:
    check_forms(min(work.glob(name)), lambda: READERS[name](str(work)))


def test_verification_lists_what_is_damaged_and_looks_at_the_rest(work: Path, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    shutil.copytree(work / "registry", place)
    (place / "aliases" / "candidate.json").write_bytes(b"{")
    [version, other] = sorted((place / "versions").iterdir())
    (version / "version.json").write_bytes(b"\xff")
    (other / "model.safetensors").write_bytes(b"changed")
    problems = "\n".join(registry_check.verify(str(place)))
    for part in ("aliases/candidate.json: damaged", f"{version.name}/version.json: damaged", "safetensors has changed"):
        assert part in problems


def test_a_status_that_is_damaged_is_refused_in_one_line(work: Path) -> None:
    check_forms(work / "status.json", lambda: read_status(str(work)))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("predictions.parquet", read_predictions),
        pytest.param("model.json", find_model, marks=pytest.mark.slow),
        ("model.json", recorded_losses),
        ("starts/*.json", read_starts),
        pytest.param("checkpoints/*/state.json", _newest, marks=pytest.mark.slow),
    ],
)
@pytest.mark.ray
def test_a_finished_run_of_another_form_is_read_or_refused_in_one_line(
    trained: str, tmp_path: Path, name: str, read: Callable[[str], Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*snapshot*"))
    check_forms(max(run.glob(name)), lambda: read(str(run)))


@pytest.mark.ray
def test_a_run_whose_skipped_losses_are_nan_is_read(trained: str, tmp_path: Path) -> None:
    """Earlier releases wrote NaN, which isn't JSON."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*snapshot*"))
    values = json.loads((run / "model.json").read_text())
    values["state"]["losses"][3] = math.nan
    (run / "model.json").write_text(json.dumps(values))
    assert math.isnan(recorded_losses(str(run))[3])
    assert find_model(str(run)).classes == find_model(trained).classes
