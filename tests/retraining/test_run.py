"""Retraining runs: a better model goes live, a worse one doesn't, and nothing happens twice."""

import http.server
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.presets import make_recipe
from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation import verify as verify_evaluation
from pipeline.evaluation.predictions import read_predictions
from pipeline.retraining import registry
from pipeline.retraining.decision.drift import Thresholds
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.plan import Plan, RetrainOptions, plan_retraining
from pipeline.retraining.registry_check import verify
from pipeline.retraining.run import Outcome, retrain
from pipeline.storage import lease
from pipeline.training.trackers.prometheus import RayMetrics
from pipeline.training.workflow import TrainOptions
from tests.support.jobs import call_job, command, one_line_error, run_job
from tests.support.pictures.datasets import Source
from tests.support.pictures.images import make_tree
from tests.support.trained.runs import scalars


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source URI is missing"),
        (["--source", ".", "--workspace", "w", "--max-cost", "3"], "max-cost needs --cost-per-hour"),
        (["--source", ".", "--workspace", "w", "--webhook", "file:///x"], "must begin with http://"),
    ],
)
def test_a_user_error_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in one_line_error(call_job("retrain", *arguments, cwd=tmp_path))


def options(**changes: Any) -> RetrainOptions:
    return RetrainOptions(workers=0, **changes)


def test_a_first_run_promotes_its_model_trackers_follow_it_and_the_same_again_does_nothing(
    digits_dataset: str, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus, through Ray's metrics, and TensorBoard get the scores of a retraining run as of every other.

    The recipe isn't given: the first run chooses it, and the next one keeps it although there are more images.
    """
    exported: list[str] = []  # the tag of the run
    monkeypatch.setattr(RayMetrics, "evaluation", lambda self, step, scores: exported.append(self.tags["run"]))
    source, work = Source(digits_dataset, str(tmp_path / "source")), tmp_path / "work"
    source.add(0, 300)
    few, started = options(changes={"epochs": 4}), list[Plan]()
    outcome = retrain(source.uri, work, options=few, on_start=started.append)
    assert outcome.status == "promoted"
    assert outcome.decision["recipe"]["name"] == "own-small-images"
    assert set(outcome.decision["seconds"]) == {"ingest", "train", "evaluate", "drift"}
    assert outcome.decision["seconds"]["ingest"] > 0.1
    assert outcome.run is not None
    assert [plan.run for plan in started] == [outcome.run]
    assert registry.get(outcome.run.registry, "champion").id == outcome.decision["challenger"]
    assert set(exported) == {outcome.run.folder.rsplit("/", 1)[1]}
    assert scalars(f"{outcome.run.training}/tensorboard", "val/top1")
    again = retrain(source.uri, work, options=few)
    assert again.status == "unchanged"
    assert again.run is None
    assert plan_retraining(source.uri, work).has_work is False
    assert plan_retraining(source.uri, work, make_recipe("digits", epochs=5)).has_work
    source.add(300, 302)
    later = plan_retraining(source.uri, work)
    assert later.has_work
    assert later.run.recipe == outcome.run.recipe
    drift_stops(source, str(work), outcome.run.training)


def drift_stops(source: Source, work: str, training: str) -> None:
    """Drift of the champion's features, or of the classes alone, ends a run before it trains, once for each source."""

    def stopped(**thresholds: float) -> Outcome:
        return retrain(source.uri, work, options=options(on_drift="stop", drift=Thresholds(**thresholds)))

    history = registry.history(f"{work}/registry", "champion")
    by_features = stopped(class_mix=1, brightness=1, features=0)
    assert by_features.status == "stopped"
    assert by_features.message.startswith("stopped before training: the champion's features have shifted")
    assert set(by_features.decision["seconds"]) == {"ingest", "drift"}
    again = stopped(features=0)
    assert again.status == "unchanged"
    assert again.message.endswith(", which drift stopped; --force trains nevertheless")
    source.add(302, 304)
    by_classes = stopped(class_mix=0)
    assert by_classes.status == "stopped"
    assert by_classes.decision["drift"]["features"] is None  # no model has looked at an image
    assert registry.history(f"{work}/registry", "champion") == history
    assert [path.parent.name for path in Path(work).glob("nights/*/run")] == [Path(training).parent.name]


def keys_of(dataset: str, split: str) -> set[str]:
    rows = manifest.load(dataset).split(split)
    return set(read_rows(dataset, rows, np.arange(rows.rows), ("key",))["key"].to_pylist())


@pytest.mark.long
def test_only_a_promotion_reads_the_lock_box_and_each_night_spends_once(digits_dataset: str, tmp_path: Path) -> None:
    """Switched on in the second night, which ingests onto the data set of the first; the third learns wrong labels."""
    source, work = Source(digits_dataset, str(tmp_path / "source")), tmp_path / "work"
    locked = options(gate=Gate(lock_box=0.3), changes={"epochs": 4})
    source.add(0, 300)
    assert retrain(source.uri, work, options=options(changes={"epochs": 4})).status == "promoted"
    assert not (work / "levels.json").exists()
    source.add(300, 1200)
    second = retrain(source.uri, work, options=locked)
    source.add(1200, 1797, wrong=0.5)
    third = retrain(source.uri, work, options=locked)
    assert [second.status, third.status] == ["promoted", "kept"]
    for outcome, reads in ((second, 1), (third, 0)):
        run = outcome.run
        assert run is not None
        test, val = (keys_of(run.dataset, name) for name in ("test", "val"))
        assert test
        assert not test & val
        for folder in ("run", "champion", "challenger"):
            assert set(read_predictions(f"{run.folder}/{folder}")[1]) == val
        for page in (f"{run.folder}/challenger/evaluation.html", f"{run.folder}/compare.html"):
            assert not [key for key in test if key in Path(page).read_text()]
        assert os.path.exists(f"{run.folder}/lock-box") == bool(reads)
        assert os.path.exists(f"{work}/lock-box/{run.id}.json") == bool(reads)
        verify_evaluation(f"{run.folder}/challenger", run.dataset, run.training)
        if reads:
            assert set(read_predictions(f"{run.folder}/lock-box/challenger")[1]) == test
            verify_evaluation(f"{run.folder}/lock-box/challenger", run.dataset, run.training)
        assert "by the limit of 1 on the false promotions" in Path(f"{run.folder}/decision.html").read_text()
    assert second.decision["lock_box"]["readings"] == 1
    assert third.decision["lock_box"] is None
    levels = [outcome.decision["sequential"]["level"] for outcome in (second, third)]
    assert [each["level"] for each in json.loads((work / "levels.json").read_text())["nights"]] == levels
    assert levels[1] == pytest.approx(levels[0] / 2, rel=0.01)


def test_a_run_in_a_workspace_where_another_works_is_busy(tmp_path: Path) -> None:
    with lease.hold_lease(f"{tmp_path}/work/lease.json", "work", ttl_seconds=1):
        outcome = retrain(make_tree(tmp_path / "source"), tmp_path / "work", "digits", options())
    assert outcome.status == "busy"
    assert "another process is writing there now" in outcome.message
    assert not (tmp_path / "work" / "active.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_hours": 0}, "max-hours=0 must be above 0"),
        ({"webhook": "file:///x"}, "must begin with http://"),
        ({"from_champion": True, "training": TrainOptions(pretrained="w.pt")}, "give one of them"),
    ],
)
def test_options_that_cannot_work_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RetrainOptions(**changes)


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that keeps what is posted to it."""

    received: list[dict[str, object]]

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@pytest.mark.long
def test_four_runs_in_a_bucket_and_a_rollback(digits_dataset: str, s3: str, tmp_path: Path) -> None:
    """A first model; nothing new; more images; more images of which 30 % have a wrong label; a rollback."""
    source, workspace = Source(digits_dataset, f"{s3}/nights/source"), f"{s3}/nights/work"
    place = f"{workspace}/registry"
    received: list[dict[str, object]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("KeepingHook", (Hook,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{server.server_port}/"

    def retrained(expected: int) -> str:
        finished = run_job(
            "retrain", "--source", source.uri, "--workspace", workspace, "--recipe", "digits", "--epochs", "4",
            "--workers", "0", "--webhook", hook, cwd=tmp_path,
        )  # fmt: skip
        assert finished.returncode == expected, finished.stdout + finished.stderr
        return finished.stdout

    source.add(0, 200)
    assert "PROMOTED" in retrained(0)
    first = registry.current(place, "champion")
    assert first is not None
    assert "nothing to do" in retrained(0)
    assert registry.current(place, "champion") == first

    source.add(200, 1000)
    output = retrained(0)
    assert "PROMOTED" in output
    second = registry.current(place, "champion")
    assert second is not None
    assert second.version != first.version
    assert "images won" not in output

    source.add(1000, 1438, wrong=0.3)
    output = retrained(3)
    assert "KEPT" in output
    assert "no gain" in output or "may be chance" in output or "the recall of" in output
    assert registry.current(place, "champion") == second
    assert "nothing to do" in retrained(0)

    finished = run_job("registry", "rollback", "--registry", place, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert registry.get(place, "champion").id == first.version
    assert verify(place) == []
    assert len(registry.versions(place)) == 3
    assert [line["promote"] for line in received] == [True, True, False]
    server.shutdown()


# One file of each stage; tests/retraining/test_faults.py (long) kills sixteen times, in the middle of a write.
STAGES = (
    "active.json",
    "datasets/*/train/*.parquet",
    "nights/*/run/checkpoints/*/state.json",
    "nights/*/challenger/predictions.parquet",
    "registry/versions/*/version.json",
    "registry/aliases/challenger.json",
    "registry/history/champion/*.json",
)


@pytest.mark.long
def test_killed_at_every_stage_a_run_ends_with_one_promotion(digits_dataset: str, tmp_path: Path) -> None:
    """SIGKILL as soon as a stage has left its first file; then once more, undisturbed."""
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


@pytest.mark.long
def test_a_forced_run_starts_from_the_champions_weights(digits_dataset: str, ray_cluster: None, tmp_path: Path) -> None:
    source, recipe = Source(digits_dataset, str(tmp_path / "source")), make_recipe("digits", epochs=4)
    source.add(0, 300)
    first = retrain(source.uri, tmp_path / "work", recipe, options())
    fitted = replace(recipe, fit_head="first")  # to the features of the champion
    second = retrain(source.uri, tmp_path / "work", fitted, options(force=True, from_champion=True))
    assert first.run is not None
    assert second.run is not None
    assert second.run.champion is not None
    assert second.run.champion.version == first.decision["challenger"]
    assert registry.get(second.run.registry, second.decision["challenger"]).parent == first.decision["challenger"]
    assert second.decision["comparison"].endswith("compare.html")


@pytest.mark.long
def test_of_two_concurrent_runs_one_works_and_one_leaves_and_a_budget_ends_a_run(
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
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("PROMOTED" in text for text in outputs) == [False, True], outputs
    assert sorted("leaving (--wait waits for it)" in text for text in outputs) == [False, True], outputs
    assert len(registry.history(str(tmp_path / "work" / "registry"))) == 1
