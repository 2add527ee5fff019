"""The list of a workspace's runs, its page and the estimate of the next run."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from pipeline.retraining.alias_file import Move
from pipeline.retraining.notices.status_file import Status
from pipeline.retraining.overview import nights as nights_module
from pipeline.retraining.overview.estimate import estimate_run
from pipeline.retraining.overview.nights import Night, read_nights, summary
from pipeline.retraining.overview.overview import Overview, read_overview
from pipeline.retraining.overview.page import champion_points, data_text, render_overview, write_page
from pipeline.retraining.overview.times import planned_text, taken_text, time_and_money
from pipeline.storage import files
from tests.support.jobs import call_job, one_line_error
from tests.support.trained.overview import many_nights
from tests.support.webhooks import Receiver, receiver

OLD = {  # as the programs before this one have written it
    "night": "0" * 12, "promote": False, "reason": "kept the champion: no gain", "checks": [], "challenger": "c" * 16,
    "correct": {"champion": 80, "challenger": 79}, "champion_before": "b" * 16, "fingerprint": "f",
    "recipe": {"name": "digits"}, "dataset": "/elsewhere/work/datasets/ff", "attempt": 0, "fair_rows": 100,
    "rows": 100, "drift": None, "seconds": {"train": 9.0},
    "report": "/elsewhere/work/nights/000000000000/challenger/report.html",
    "comparison": None,
}  # fmt: skip


def decided(workspace: Path, **changes: Any) -> dict[str, Any]:
    decision = {**OLD, **changes}
    files.write_json(f"{workspace}/nights/{decision['night']}/decision.json", decision)
    return decision


def test_decisions_of_an_earlier_program_are_listed(tmp_path: Path) -> None:
    decided(tmp_path)
    (tmp_path / "nights" / "at-work").mkdir()
    [night] = read_nights(str(tmp_path))
    assert night.status == "kept"
    assert night.finished == pytest.approx((tmp_path / "nights" / ("0" * 12) / "decision.json").stat().st_mtime)
    assert night.gain == {"gain": -0.01}
    assert night.champion == (80, 100)
    assert night.report == "nights/000000000000/challenger/report.html"  # wherever the workspace lies now
    assert (night.data, night.cost) == (None, None)
    page = Path(write_page(read_overview(str(tmp_path)))).read_text()
    assert "-1.00 points" in page
    assert 'href="nights/000000000000/challenger/report.html"' in page


def test_a_decision_is_read_once_and_again_if_it_is_decided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(tmp_path, night="a", finished=2.0)
    decided(tmp_path, night="b", finished=1.0)
    assert [each.id for each in read_nights(str(tmp_path), update=True)] == ["b", "a"]
    again = decided(tmp_path, night="b", finished=3.0, promote=True)
    files.write_json(f"{tmp_path}/latest.json", again)
    with monkeypatch.context() as patch:
        patch.setattr(nights_module, "_read", lambda *_: pytest.fail("the cache has it"))
        nights = read_nights(str(tmp_path))
    assert [(each.id, each.status) for each in nights] == [("a", "kept"), ("b", "promoted")]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 0}', '{"schema": 1, "nights": [{"no": 1}]}'])
def test_a_cache_of_another_program_is_made_anew(text: str, tmp_path: Path) -> None:
    decided(tmp_path)
    (tmp_path / "nights.json").write_text(text)
    assert len(read_nights(str(tmp_path), update=True)) == 1
    assert json.loads((tmp_path / "nights.json").read_text())["nights"][0]["id"] == "0" * 12


def test_a_damaged_decision_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decided(tmp_path)
    decided(tmp_path, night="bad")
    (tmp_path / "nights" / "bad" / "decision.json").write_text("{")
    assert [each.id for each in read_nights(str(tmp_path))] == ["0" * 12]
    assert "the run is left out of the list" in caplog.text


@pytest.mark.parametrize(
    ("count", "rows", "has_chart"), [(0, 0, False), (1, 1, False), (30, 30, True), (400, 400, True)]
)
def test_the_page_has_a_line_for_every_run(count: int, rows: int, has_chart: bool) -> None:
    page = render_overview(Overview("/w/photos", many_nights(count)))
    assert page.count("/decision.html") == count
    assert ("<figure" in page) == has_chart
    assert ("older lines" in page) == (count > 60)
    assert len(page) < 1_000_000


def test_the_page_tells_failures_rollbacks_and_what_waits() -> None:
    nights = many_nights(2)
    moves = [
        Move("champion", 1, "a" * 16, 0, f"promoted: +1 (night {nights[0].id})", nights[0].finished),
        Move("champion", 2, "b" * 16, 0, "worse on <the> new camera", nights[1].finished + 60),
    ]
    failed = Status("failed", "the bucket is away", last_run=1.7e9, last_success=1.6e9)
    page = render_overview(Overview("/w/photos", nights, moves, failed, "abc", 2))
    assert "The last call failed, 2023-11-14 22:13 UTC: the bucket is away" in page
    assert page.count("worse on &lt;the&gt; new camera") == 1
    assert "promoted: +1 (night" not in page  # it has a line as a run
    assert "Run abc is at work" in page
    assert "2 messages wait for a webhook" in page
    assert re.search(r"since 2\d{3}-\d\d-\d\d", page)


def test_the_accuracy_is_that_of_the_model_that_is_live_whoever_made_it_so() -> None:
    """A first model; a better one; another that is promoted and comes back by itself, or by hand."""
    a, b, c = ("a" * 16, "b" * 16, "c" * 16)
    nights = [
        Night("1", 1.0, "promoted", "", a, None, {"challenger": 50}, 100),
        Night("2", 2.0, "promoted", "", b, a, {"champion": 55, "challenger": 80}, 100),
        Night("3", 3.0, "promoted", "", c, b, {"champion": 81, "challenger": 95}, 100),
    ]
    moves = [
        Move("champion", at, each, at - 1, f"promoted (night {at:012x})", at) for at, each in enumerate((a, b, c), 1)
    ]
    assert Overview("/w", nights, moves).live == (95, 100)
    back = Move("champion", 4, b, 1, "back to b: worse in use (return 0123456789abcdef)", 4.0)
    assert Overview("/w", nights, [*moves, back]).live == (81, 100)
    by_hand = Move("champion", 5, a, 0, "the camera is the old one again", 5.0)
    moves = [*moves, back, by_hand]
    assert Overview("/w", nights, moves).live == (55, 100)
    assert champion_points(nights, moves) == [
        (1.0, 50, 100, True), (2.0, 80, 100, True), (3.0, 95, 100, True), (4.0, 81, 100, True), (5.0, 55, 100, True),
    ]  # fmt: skip
    assert Overview("/w", nights, [*moves, Move("champion", 6, "d" * 16, 0, "from elsewhere", 6.0)]).live is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, ""),
        ({"rows": {"train": 1200, "val": 30}}, "1,200 train, 30 val"),
        (
            {"rows": {"train": 9, "val": 1}, "since": "f", "added": {"train": 2000}, "removed": {"val": 1},
             "changed": {}, "classes_added": ["owl", "a", "b", "c", "d"], "classes_removed": ["cat"]},
            "train +2,000, val -1; new: owl, a, b, c and 1 more; gone: cat",
        ),
        (
            {"rows": {"train": 9}, "since": "f", "added": {}, "removed": {}, "changed": {}, "classes_added": [],
             "classes_removed": []},
            "the same rows",
        ),
    ],
)  # fmt: skip
def test_changes_of_the_data_are_said_in_words(data: dict[str, Any] | None, text: str) -> None:
    assert data_text(data) == text


def past(train_seconds: float, rows: int, **changes: Any) -> Night:
    night = summary({**OLD, "seconds": {"ingest": 4.0, "train": train_seconds, "evaluate": 10.0}})
    night = replace(night, data={"rows": {"train": rows, "val": 100}}, recipe="digits", epochs=10)
    return replace(night, **changes)


def test_the_estimate_scales_the_median_of_the_newest_runs() -> None:
    nights = [past(9e9, 1), *(past(10.0 * each, 100 * each) for each in range(1, 6))]
    found = estimate_run(nights, "digits", 20, {"train": 1000, "val": 50})
    assert found is not None
    assert found.seconds == {"ingest": 4.0, "train": 200.0, "evaluate": 5.0}
    assert found.basis == "median of 5 runs of recipe digits, for 1,000 training images"
    assert found.total == 209
    unknown = estimate_run(nights, "digits", 10, None)
    assert unknown is not None
    assert unknown.seconds["train"] == 50  # as many as the newest run had
    assert "the source isn't ingested yet" in unknown.basis


@pytest.mark.parametrize(
    "changes",
    [{"recipe": "other"}, {"data": None}, {"epochs": 0}, {"plan": {"resumed": True}}, {"seconds": {"ingest": 1.0}}],
)
def test_a_run_that_tells_nothing_of_the_time_is_no_basis(changes: dict[str, Any]) -> None:
    assert estimate_run([past(10, 100, **changes)], "digits", 10, None) is None


def test_time_and_money_are_planned_and_taken() -> None:
    plan = {"estimate": {"seconds": {"train": 1800.0, "ingest": 1800.0}}, "cost_per_hour": 2.5}
    assert planned_text(plan) == "60 min (2.50)"
    assert taken_text({"train": 7200.0}, plan) == "2.0 h (5.00)"
    assert (planned_text(None), planned_text({"estimate": None})) == ("", "")
    assert time_and_money(42, 0) == "42 s"


def test_the_command_lists_runs_writes_the_page_and_sends_what_is_left(tmp_path: Path) -> None:
    decided(tmp_path, finished=1e9)
    files.write_json(f"{tmp_path}/notices/m1.json", {"id": "m1", "body": {"type": "x"}, "since": time.time()})

    def nights(action: str, *flags: str) -> CompletedProcess[str]:
        return call_job("workspaces.nights", action, "--workspace", str(tmp_path), *flags, cwd=tmp_path)

    listed = nights("list")
    assert "1 finished run in" in listed.stdout
    assert "-1.00" in listed.stdout
    nights("page")
    assert "1 message waits for a webhook" in (tmp_path / "index.html").read_text()
    with receiver() as there:
        there.answers = [400]
        refused = nights("send", "--webhook", there.url)
        assert refused.returncode == 1
        assert "m1: HTTP 400 Bad Request" in refused.stdout
        accepted = nights("send", "--webhook", there.url, "--metrics", str(tmp_path / "sent.prom"))
        assert accepted.returncode == 0
        assert there.messages == [{"type": "x"}] * 2
        assert "waits for a webhook" not in (tmp_path / "index.html").read_text()
        assert "undelivered_messages{" in (tmp_path / "sent.prom").read_text()
        assert list((tmp_path / "notices").iterdir()) == []
        given_up_and_discarded(tmp_path, there)
    target = tmp_path / "nights.prom"
    nights("metrics", "--metrics", str(target))
    assert 'runs{decision="kept"' in target.read_text()


def given_up_and_discarded(work: Path, there: Receiver) -> None:
    """A message that is given up is left, and gone once a person discards it."""
    files.write_json(f"{work}/notices/dead/m2.json", {"id": "m2", "body": {}, "since": 1.0, "refusals": 3})
    send = ("workspaces.nights", "send", "--workspace", str(work), "--webhook", there.url)
    there.answers = [400, 400]
    left = call_job(*send, cwd=work)
    assert left.returncode == 1
    assert "0 messages accepted, 1 left" in left.stdout
    assert "1 message was given up" in (work / "index.html").read_text()
    done = call_job(*send, "--discard", cwd=work)
    assert (done.returncode, done.stdout) == (0, "0 messages accepted, 0 left, 1 discarded\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "--workspace URI is missing"),
        (["list", "--workspace", "wrk"], "wrk: no such folder; give that of jobs/retrain.py; did you mean"),
        (["send", "--workspace", "work"], "--webhook URL is missing"),
        (["metrics", "--workspace", "work"], "--metrics FILE or URL is missing"),
        (["metrics", "--workspace", "work", "--metrics", "x.txt"], "node-exporter reads files NAME.prom alone"),
        (["sned", "--workspace", "work"], "did you mean send?"),
    ],
)
def test_a_user_error_of_the_command_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert message in one_line_error(call_job("workspaces.nights", *arguments, cwd=tmp_path))
