"""Decisions are told at least once, whoever is killed or down, and no notice fails a run."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import RecipeError, StorageError, UnavailableError
from pipeline.retraining.decision_file import LATEST_NAME
from pipeline.retraining.notices import notifier, outbox
from pipeline.retraining.notices.command_hook import call_command, check_command
from pipeline.retraining.notices.notifier import Channels, Notifier
from pipeline.retraining.notices.status_file import Status, read_status
from pipeline.retraining.notices.webhook import SECRET_VARIABLE, Webhook
from pipeline.storage import files
from tests.support.webhooks import Receiver, receiver

DECISION: dict[str, Any] = {
    "night": "a1", "promote": True, "reason": "promoted: +1", "recipe": {"name": "r"}, "finished": 7.9, "dataset": "/d",
    "fingerprint": "f",
}  # fmt: skip


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


@pytest.fixture
def work(tmp_path: Path) -> str:
    return str(tmp_path / "work")


def channels(there: Receiver, command: str | None = None) -> Channels:
    return Channels(Webhook(there.url, None, 2, first_wait_seconds=0.01, timeout_seconds=1), command)


def publish(work: str, decision: dict[str, Any]) -> None:
    files.write_json(files.join(work, LATEST_NAME), decision)


def night(work: str, there: Receiver, decision: dict[str, Any] | None = None) -> None:
    """A call that decides, or finds nothing to do."""
    told = Notifier(work, channels(there))
    told.begin()
    if decision:
        publish(work, decision)
        told.decided(decision)
    told.ended("promoted" if decision else "unchanged", "why")


def test_a_decision_is_told_once(work: str, there: Receiver) -> None:
    night(work, there, DECISION)
    night(work, there)
    [message] = there.messages
    assert message["type"] == "retraining.promoted"
    assert message["reason"] == "promoted: +1"
    assert "recipe" not in message
    assert there.requests[0][1]["webhook-id"] == "night_a1_7"
    assert outbox.undelivered(work) == []
    status = read_status(work)
    assert status is not None
    assert (status.status, status.told) == ("unchanged", "night_a1_7")


def test_a_decision_that_a_killed_run_did_not_tell_is_told_by_the_next_one(work: str, there: Receiver) -> None:
    Notifier(work, channels(there)).begin()
    publish(work, DECISION)  # killed here
    night(work, there)
    night(work, there)
    assert [message["reason"] for message in there.messages] == ["promoted: +1"]


def test_a_kill_while_a_message_is_on_its_way_sends_it_again_with_its_id(
    work: str, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "delete_files", lambda *_: sys.exit("killed before the message is crossed out"))
        with pytest.raises(SystemExit):
            night(work, there, DECISION)
    night(work, there)
    assert {headers["webhook-id"] for _, headers, _ in there.requests} == {"night_a1_7"}
    assert outbox.undelivered(work) == []


def test_decisions_of_an_earlier_program_are_not_told_again(work: str, there: Receiver) -> None:
    publish(work, {name: value for name, value in DECISION.items() if name != "finished"})
    night(work, there)
    assert there.requests == []


def test_a_receiver_that_is_down_gets_everything_later_in_order(
    work: str, there: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    there.answers = [500] * 6  # two attempts each: for the first decision, before the second run, and after it
    night(work, there, DECISION)
    assert "the webhook accepted all but 1 message (HTTP 500" in caplog.text
    night(work, there, {**DECISION, "night": "b2", "promote": False, "reason": "kept"})
    assert [(each.id, each.failures) for each in outbox.undelivered(work)] == [("night_a1_7", 3), ("night_b2_7", 0)]
    there.requests.clear()
    night(work, there)
    assert [message["reason"] for message in there.messages] == ["promoted: +1", "kept"]
    assert outbox.undelivered(work) == []


def test_a_message_that_is_refused_for_good_holds_up_no_other(work: str, there: Receiver) -> None:
    there.answers = [400]
    night(work, there, DECISION)
    there.answers = [400]  # before the run, and not again after it
    night(work, there, {**DECISION, "night": "b2"})
    assert [each.id for each in outbox.undelivered(work)] == ["night_a1_7"]
    assert [each["night"] for each in there.messages] == ["a1", "a1", "b2"]


@pytest.mark.parametrize(("status", "runs"), [(400, outbox.MOST_REFUSALS), (410, 1), (500, 9)])
def test_a_message_that_nobody_wants_is_given_up(
    status: int, runs: int, work: str, there: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.put(work, "old", {})
    for run in range(4):
        there.answers = [status] * 2
        night(work, there)
        assert bool(outbox.given_up(work)) == (run + 1 >= runs)
        assert bool(outbox.undelivered(work)) == (run + 1 < runs)
    assert len(there.requests) == (8 if status == 500 else runs)  # two attempts each, where it may pass
    assert ("the message old was given up (HTTP 4" in caplog.text) == (status != 500)


def test_a_message_that_is_too_old_is_given_up_and_sent_or_discarded_by_a_person(work: str, there: Receiver) -> None:
    for name in ("a", "b"):
        files.write_json(f"{work}/notices/{name}.json", {"id": name, "body": {"name": name}, "since": 1.0})
    there.answers = [503] * 2
    night(work, there)  # the receiver is asked once
    assert [each.id for each in outbox.given_up(work)] == ["a"]
    there.answers = [400]
    night(work, there)
    there.answers = [204, 400]
    person = channels(there).webhook
    assert person is not None
    assert outbox.send_given_up(work, person) == 1
    assert [(each.id, each.reason) for each in outbox.given_up(work)] == [("b", "HTTP 400 Bad Request")]
    assert outbox.discard_given_up(work) == 1
    assert files.list_files(f"{work}/notices") == []


def test_messages_that_are_refused_for_good_cost_a_run_little(
    work: str, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own message comes first, each of the others once, and none once the seconds are used up."""
    for number in range(20):
        outbox.put(work, f"dead_{number:02}", {})
    told = Notifier(work, channels(there))
    there.answers = [400] * 20
    told.begin()
    told.decided(DECISION)
    told.failed(StorageError("x"))
    assert len(there.requests) == 22
    there.requests.clear()
    there.answers = [400]
    monkeypatch.setattr(notifier, "SECONDS_FOR_MESSAGES", 0.0)
    night(work, there, {**DECISION, "night": "b2"})
    assert [headers["webhook-id"] for _, headers, _ in there.requests] == ["dead_00", "night_b2_7"]
    assert len(outbox.undelivered(work)) == 20


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "m"}', '{"id": "m", "body": 1, "since": "x"}'])
def test_a_damaged_message_ends_no_run_and_holds_up_no_other(
    text: str, work: str, there: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.put(work, "whole", {"later": 1})
    whole = files.read_json(f"{work}/notices/whole.json")
    files.write_json(f"{work}/notices/whole.json", {**whole, "of_a_later_program": 1})
    files.write_bytes(f"{work}/notices/bad.json", text.encode())
    night(work, there, DECISION)
    assert [each.get("later") for each in there.messages] == [1, None]
    assert "bad.json: damaged" in caplog.text
    status = read_status(work)
    assert status is not None
    assert (status.status, status.told) == ("promoted", "night_a1_7")


@pytest.mark.parametrize("error", [StorageError("x"), TypeError("a defect")])
def test_a_channel_that_fails_silences_no_other(
    error: Exception, work: str, there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(outbox, "send", fail)
    out = tmp_path / "out.json"
    told = Notifier(work, channels(there, hook(tmp_path, f"import sys; open({str(out)!r}, 'a').write('told ')")))
    told.begin()
    told.decided(DECISION)
    assert told.reviewed({"kind": "return", "review": "r1"})
    assert out.read_text() == "told told "
    assert [each.id for each in outbox.undelivered(work)] == ["night_a1_7", "review_r1"]
    monkeypatch.setattr(outbox, "put", fail)
    assert not told.reviewed({"kind": "return", "review": "r2"})  # the next review tells it


def test_a_failure_is_told_and_keeps_the_time_of_the_last_success(work: str, there: Receiver) -> None:
    night(work, there)
    before = read_status(work)
    told = Notifier(work, channels(there))
    told.begin()
    told.failed(StorageError("the disk is full"))
    after = read_status(work)
    assert before is not None
    assert after is not None
    assert (after.status, after.last_success) == ("failed", before.last_success)
    assert [(each["type"], each["reason"]) for each in there.messages] == [("retraining.failed", "the disk is full")]


def test_a_storage_that_is_away_is_not_written_to(work: str, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Notifier(work, channels(there))
    told.begin()
    monkeypatch.setattr(files, "write_bytes", lambda *_: pytest.fail("it would take minutes"))
    told.failed(UnavailableError("s3: no answer"))
    assert [each["reason"] for each in there.messages] == ["s3: no answer"]


def test_a_workspace_that_refuses_notices_fails_nothing(
    work: str, there: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(files, "write_bytes", full)
    told = Notifier(work, channels(there))
    told.begin()
    told.decided(DECISION)
    told.ended("promoted", "why")
    assert "the notice of the decision: the disk is full; the run goes on" in caplog.text


def test_the_time_of_the_first_call_is_kept(work: str, there: Receiver) -> None:
    start = time.time()
    Notifier(work, channels(there)).begin()  # killed here
    first = read_status(work)
    assert first is not None
    assert start <= (first.first_run or 0) <= time.time()
    night(work, there)
    later = read_status(work)
    assert later is not None
    assert later.first_run == first.first_run
    files.write_json(files.join(work, "status.json"), {"status": "kept", "last_run": 9.0, "last_success": 8.0})
    night(work, there)
    of_earlier_program = read_status(work)
    assert of_earlier_program is not None
    assert of_earlier_program.first_run == 8.0


def test_a_status_file_of_a_later_program_is_read(work: str) -> None:
    files.write_json(files.join(work, "status.json"), {"status": "kept", "told": "m", "later": 1})
    assert read_status(work) == Status(status="kept", told="m")


def hook(tmp_path: Path, text: str) -> str:
    """Returns the command line of a program of Python."""
    program = tmp_path / "hook.py"
    program.write_text(text)
    return f"{sys.executable} {program}"


def test_a_command_gets_the_decision_and_not_the_secret(
    work: str, there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "whsec_x")
    out = tmp_path / "out.json"
    program = (
        f"import os, sys; open({str(out)!r}, 'w').write(sys.stdin.read()); assert {SECRET_VARIABLE!r} not in os.environ"
    )
    command = hook(tmp_path, program)
    Notifier(work, channels(there, command)).decided(DECISION)
    assert json.loads(out.read_text())["reason"] == "promoted: +1"
    assert call_command(command, b"{}") == ""


def test_a_command_that_fails_is_a_warning(
    work: str, there: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = hook(tmp_path, "import sys; print('no mail server'); sys.exit(7)")
    with caplog.at_level(logging.WARNING):
        Notifier(work, channels(there, command)).decided(DECISION)
    assert "failed (status 7: no mail server); the decision stands" in caplog.text


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    start = time.monotonic()
    command = hook(
        tmp_path, f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 1; touch {child}']); time.sleep(60)"
    )
    assert call_command(command, b"{}", limit_seconds=0.5) == "it ran longer than 0.5 s"
    assert time.monotonic() - start < 3
    time.sleep(0.8)
    assert not child.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [("mail 'x", "mind the quotes"), ("", "is empty"), ("no-such-program-here -x", "no program no-such-program-here")],
)
def test_a_command_that_cannot_run_is_an_error_before_the_run(command: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_command(command)


def test_mlflows_refusal_is_a_warning(
    work: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_: object) -> None:
        raise MlflowException("no such\nserver")

    monkeypatch.setattr(notifier, "mirror", refuse)
    Notifier(work, Channels(mlflow="http://127.0.0.1:9")).decided(DECISION)
    assert "MLflow refused the update (no such server); the decision stands" in caplog.text
