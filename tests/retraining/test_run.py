"""Nights of retraining: a better model goes live, a worse one doesn't, and nothing happens twice."""

import http.server
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.retraining import promotion, registry
from pipeline.retraining.drift import Thresholds, assess, class_mix, feature_distance
from pipeline.retraining.promotion_gate import Gate
from pipeline.retraining.registry_check import verify
from pipeline.retraining.workspace import RetrainingRun, is_unchanged, resume_or_start
from tests.support.datasets import Source
from tests.support.jobs import command, one_line_error, run_job
from tests.support.predictions import predictions

GATE = Gate()


def night_of(workspace: str, **changes: object) -> RetrainingRun:
    recipe = json.loads(json.dumps(asdict(make_recipe("digits"))))
    return replace(RetrainingRun(workspace, "source", "f" * 64, recipe, None, GATE, False), **changes)


def test_a_night_that_was_cut_off_goes_on_with_the_champion_it_began_with(tmp_path: Path) -> None:
    workspace = str(tmp_path)
    first = night_of(workspace)
    assert resume_or_start(first) == first
    moved = registry.Move("champion", 1, "a" * 16, 0, "promoted by this very night, which was killed then", 1.0)
    again = resume_or_start(replace(first, champion=moved))
    assert again == first
    assert again.id == first.id
    other = replace(first, champion=moved, fingerprint="e" * 64)
    assert resume_or_start(other) == other
    assert resume_or_start(replace(other, champion=None)) == other


def test_nothing_is_to_do_on_the_same_source_with_the_same_recipe() -> None:
    night = night_of("w")
    latest = {"fingerprint": night.fingerprint, "recipe": night.recipe}
    assert is_unchanged(latest, night.fingerprint, night.recipe)
    assert not is_unchanged(latest, "other", night.recipe)
    assert not is_unchanged(latest, night.fingerprint, {**night.recipe, "epochs": 3})
    assert not is_unchanged(None, night.fingerprint, night.recipe)


def test_the_first_model_must_be_better_than_a_guess() -> None:
    good, bad = predictions(np.arange(400) % 4 > 0), predictions(np.arange(400) % 10 == 0)
    assert promotion.decide_without_champion(good, 10, GATE).promote
    refused = promotion.decide_without_champion(bad, 10, GATE)
    assert not refused.promote
    assert "no better than that" in refused.reason


def test_only_rows_that_neither_model_trained_on_count(digits_dataset: str) -> None:
    data = load(digits_dataset)
    assert promotion.unseen_rows(digits_dataset, replace(data, leaked={}), []).all()
    keys = read_rows(digits_dataset, data.split("val"), np.arange(3), ("key",))["key"].to_pylist()
    leaked = replace(data, leaked={"val": tuple(keys)})
    assert (~promotion.unseen_rows(digits_dataset, leaked, [])).sum() == 3
    champion, challenger = predictions(np.zeros(359, bool)), predictions(np.ones(359, bool))
    fair = np.zeros(359, dtype=bool)
    with pytest.raises(RecipeError, match="no validation image is left"):
        promotion.decide_promotion(champion, challenger, data.classes, fair, GATE)
    fair[:100] = True
    decision = promotion.decide_promotion(champion, challenger, data.classes, fair, GATE)
    assert decision.promote
    assert "100 images" in decision.reason


def test_drift_is_measured_and_named(digits_dataset: str) -> None:
    data = load(digits_dataset)
    train = data.split("train")
    counts = list(train.rows_per_class)
    moved = replace(train, rows_per_class=(counts[0] - 50, counts[1] + 50, *counts[2:]))
    mixed = replace(data, splits={**data.splits, "train": moved})
    assert class_mix(data, data) == 0
    assert class_mix(data, mixed) == pytest.approx(50 / sum(counts))
    generator = np.random.default_rng(0)
    before = generator.standard_normal((4000, 8)).astype(np.float32)
    assert feature_distance(before, before) == 0
    assert feature_distance(before, before + 2) == pytest.approx(2, rel=0.05)
    assert feature_distance(3 * before, 3 * before + 6) == pytest.approx(2, rel=0.05)
    quiet, loud = assess(0.01, None, 0.2, Thresholds()), assess(0.3, 0.4, 0.9, Thresholds())
    assert quiet.warnings == ()
    assert len(loud.warnings) == 3


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source URI is missing"),
        (["--source", ".", "--workspace", "w", "--max-cost", "3"], "max-cost needs --cost-per-hour"),
        (["--source", ".", "--workspace", "w", "--webhook", "file:///x"], "must begin with http://"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in one_line_error(run_job("retrain", *arguments, cwd=tmp_path))


class Hook(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted."""

    got: list[dict[str, object]]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.mark.long
def test_four_nights_in_a_bucket_and_a_rollback(digits_dataset: str, s3: str, tmp_path: Path) -> None:
    """First model; nothing new; more images; more images of which 30 % have a wrong label; back by one command."""
    source, workspace = Source(digits_dataset, f"{s3}/nights/source"), f"{s3}/nights/work"
    place = f"{workspace}/registry"
    got: list[dict[str, object]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Kept", (Hook,), {"got": got}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{server.server_port}/"

    def night(expected: int) -> str:
        finished = run_job(
            "retrain", "--source", source.uri, "--workspace", workspace, "--recipe", "digits", "--epochs", "4",
            "--workers", "0", "--webhook", hook, cwd=tmp_path,
        )  # fmt: skip
        assert finished.returncode == expected, finished.stdout + finished.stderr
        return finished.stdout

    source.add(0, 200)
    assert "PROMOTED" in night(0)
    first = registry.current(place, "champion")
    assert first is not None
    assert "nothing to do" in night(0)
    assert registry.current(place, "champion") == first

    source.add(200, 1000)
    said = night(0)
    assert "PROMOTED" in said
    second = registry.current(place, "champion")
    assert second is not None
    assert second.version != first.version
    assert "images won" not in said

    source.add(1000, 1438, wrong=0.3)
    said = night(3)
    assert "KEPT" in said
    assert "may be chance" in said or "recall of" in said
    assert registry.current(place, "champion") == second
    assert "nothing to do" in night(0)

    finished = run_job("registry", "rollback", "--registry", place, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert registry.get(place, "champion").id == first.version
    assert verify(place) == []
    assert len(registry.versions(place)) == 3
    assert [line["promote"] for line in got] == [True, True, False]
    server.shutdown()


STAGES = (
    "active.json",
    "datasets/*/train/*.parquet",
    "datasets/*/manifest.json",
    "nights/*/run/config.json",
    "nights/*/run/checkpoints/*/state.json",
    "nights/*/run/result.json",
    "nights/*/challenger/predictions.parquet",
    "nights/*/challenger/metrics.json",
    "registry/versions/*/version.json",
    "registry/aliases/challenger.json",
    "registry/history/champion/*.json",
)


@pytest.mark.slow
def test_killed_at_every_stage_a_night_ends_with_one_promotion(digits_dataset: str, tmp_path: Path) -> None:
    """SIGKILL as soon as each stage has left its first file, then once more without."""
    source = Source(digits_dataset, str(tmp_path / "source"))
    source.add(0, 300)
    work = tmp_path / "work"
    arguments = ["--source", source.uri, "--workspace", str(work), "--recipe", "digits", "--epochs", "4"]
    line = [*command("retrain", *arguments), "--workers", "0"]
    killed = []
    for stage in STAGES:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not list(work.glob(stage)):
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed.append(stage)
        process.wait()
    assert set(STAGES) - set(killed) <= {"registry/history/champion/*.json"}  # it may be over before it is seen
    finished = run_job("retrain", *arguments, "--workers", "0", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "PROMOTED" in finished.stdout or "nothing to do" in finished.stdout
    place = str(work / "registry")
    assert [move.number for move in registry.history(place)] == [1]
    assert len(registry.versions(place)) == 1
    assert verify(place) == []
    assert len(list((work / "nights").iterdir())) == 1
    assert not (work / "active.json").exists()
    assert "nothing to do" in run_job("retrain", *arguments, "--workers", "0", cwd=tmp_path).stdout


@pytest.mark.slow
def test_of_two_nights_at_once_one_works_and_one_leaves_and_a_budget_ends_one(
    digits_dataset: str, tmp_path: Path
) -> None:
    source = Source(digits_dataset, str(tmp_path / "source"))
    source.add(0, 300)
    arguments = ["--source", source.uri, "--workspace", str(tmp_path / "work"), "--recipe", "digits", "--workers", "0"]
    stopped = run_job("retrain", *arguments, "--max-hours", "0.002", cwd=tmp_path)  # 7 seconds
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert "the budget of 0.002 h is used up" in stopped.stdout
    line = command("retrain", *arguments, "--epochs", "40")  # long enough for the other one to come meanwhile
    both = [subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("PROMOTED" in text for text in said) == [False, True], said
    assert sorted("leaving (--wait waits for it)" in text for text in said) == [False, True], said
    assert len(registry.history(str(tmp_path / "work" / "registry"))) == 1


def test_the_champions_own_data_set_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift is measured against it; its ancestors' only say what can't be judged on."""
    parents = {"c": "b", "b": "a", "a": ""}
    data = {"c": "w/datasets/1", "b": "w/datasets/9", "a": "w/datasets/1"}
    monkeypatch.setattr(registry, "get", lambda place, name: SimpleNamespace(parent=parents[name]))
    monkeypatch.setattr(promotion, "read_metrics", lambda uri: {"dataset": {"uri": data[uri.rsplit("/", 1)[1]]}})
    champion = registry.Move("champion", 1, "c", 0, "", 0.0)
    assert promotion.earlier_datasets(night_of("w", champion=champion)) == ["w/datasets/1", "w/datasets/9"]
    assert promotion.earlier_datasets(night_of("w")) == []
