"""The last steps of a retraining run: champion or candidate, once, whatever is killed and whoever else moves."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import RegistryError, StorageError
from pipeline.retraining import registry
from pipeline.retraining.decision.promotion_gate import Check, Decision
from pipeline.retraining.live.candidates import needs_labels, pending_candidate
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.review import review
from pipeline.retraining.registry_check import verify
from pipeline.retraining.workspace import RetrainingRun, publish, resume_or_start
from pipeline.storage import files
from tests.support.kills import killed_at_write
from tests.support.trained.live import make_version, promote, put_labels, put_traffic
from tests.support.trained.retraining import planned_run

BETTER = Decision(True, (Check("gain", True, 0.01, 0.05, "+3 points"),), {"champion": 5, "challenger": 8})
SLOW = Decision(False, (*BETTER.checks, Check("latency", False, 1.7, 1.5, "slower")), BETTER.correct)
DETAILS: dict[str, Any] = {
    "fair_rows": 10, "rows": 10, "drift": None, "seconds": {"train": 1.0}, "report": None, "comparison": None,
    "finished": 1.0,
}  # fmt: skip


def started(workspace: str, fingerprint: str = "f" * 64) -> tuple[RetrainingRun, int]:
    """Returns a run against the champion as it is now, and its fence."""
    champion = registry.current(f"{workspace}/registry", "champion")
    run = resume_or_start(planned_run(workspace, champion=champion, fingerprint=fingerprint))
    return run, registry.take_fence(run.registry, "champion")


def published(run: RetrainingRun, version: str, fence: int, alias: str = "candidate") -> dict[str, Any]:
    return publish(run, BETTER, version, fence, DETAILS, alias)


def raising(error: Exception) -> Callable[..., None]:
    def call(*arguments: Any, **options: Any) -> None:
        raise error

    return call


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A registry with a champion, below a workspace."""
    uri = f"{tmp_path}/registry"
    promote(uri, make_version(uri, "one"))
    return uri


def test_a_model_that_passed_the_gate_waits_as_candidate_and_the_next_one_takes_its_place_after_a_while(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (make_version(place, name) for name in ("one", "two", "three"))
    run, fence = started(str(tmp_path))
    values = published(run, two, fence)
    assert (values["status"], values["promote"], values["reason"]) == ("candidate", True, "candidate: +3 points")
    assert registry.aliases(place) == {"champion": one, "candidate": two, "challenger": two}
    moved = pending_candidate(place)
    assert moved is not None
    assert (moved.against, moved.reason) == (1, f"candidate: +3 points (night {run.id})")
    assert "Candidate: it answers" in files.read_bytes(f"{run.folder}/decision.html").decode()
    again, fence = started(str(tmp_path), "d" * 64)
    values = published(again, three, fence)
    assert (values["promote"], values.get("status")) == (False, None)
    assert f"{two} waits as candidate for 0 of 30 days" in values["reason"]
    assert registry.aliases(place)["candidate"] == two
    month_later = time.time() + 30 * 86_400
    monkeypatch.setattr("time.time", lambda: month_later)
    later, fence = started(str(tmp_path), "e" * 64)
    values = published(later, three, fence)
    assert values["reason"] == f"candidate: +3 points; takes the place of {two}, on which nothing was decided"
    assert registry.aliases(place)["candidate"] == three
    assert verify(place) == []


def test_a_first_model_is_champion_at_once(tmp_path: Path) -> None:
    version = make_version(f"{tmp_path}/registry", "one")
    run, fence = started(str(tmp_path))
    assert "status" not in published(run, version, fence)
    assert registry.aliases(run.registry) == {"champion": version, "challenger": version}


def test_a_run_with_an_old_fence_or_another_champion_nominates_nothing(place: str, tmp_path: Path) -> None:
    two = make_version(place, "two")
    run, slept = started(str(tmp_path))
    awake = registry.take_fence(place, "champion")
    with pytest.raises(RegistryError, match="took a later fencing token"):
        published(run, two, slept)
    promote(place, make_version(place, "three"), "")
    with pytest.raises(RegistryError, match="champion: another process has moved it meanwhile"):
        published(run, two, awake)
    assert pending_candidate(place) is None
    again, fence = started(str(tmp_path))  # against the new champion
    assert again.id != run.id
    assert published(again, two, fence)["status"] == "candidate"


@pytest.mark.parametrize("alias", ["champion", "candidate"])
def test_weights_that_were_sent_back_are_not_promoted_again(place: str, tmp_path: Path, alias: str) -> None:
    two = make_version(place, "two")
    run, fence = started(str(tmp_path))
    published(run, two, fence, alias)
    champion = registry.get(place, "champion").id
    put_traffic(
        place, (champion, two if alias == "candidate" else None), ["a"] * 40 if alias == "candidate" else [None] * 40
    )
    assert review(place, LiveRule(min_images=20)).decisions
    same = make_version(place, "two", top1=0.95)  # the same weights, another evaluation
    assert same != two
    later, fence = started(str(tmp_path), "e" * 64)
    values = published(later, same, fence, alias)
    assert values["promote"] is False
    assert "only a person promotes it" in values["reason"]
    assert registry.aliases(place)["champion"] != same
    assert pending_candidate(place) is None
    assert verify(place) == []


@pytest.mark.parametrize("alias", ["champion", "candidate"])
def test_killed_at_any_write_the_same_call_ends_the_same_way(alias: str, tmp_path: Path) -> None:
    """Before each of its writes, which is after the one before it; then once more, with a fence of its own."""
    expected: dict[str, Any] = {}
    for n in itertools.count(1):
        workspace = f"{tmp_path}/{n}"
        place = f"{workspace}/registry"
        promote(place, make_version(place, "one"))
        two = make_version(place, "two")
        run, fence = started(workspace)
        killed = killed_at_write(n, lambda run=run, two=two, fence=fence: published(run, two, fence, alias))
        again, fence = started(workspace) if killed else (run, fence)
        values = published(again, two, fence, alias) if killed else files.read_json(f"{workspace}/latest.json")
        told = {name: values[name] for name in ("promote", "reason", "challenger")}
        expected = expected or told
        assert told == expected
        assert len(registry.history(place, alias)) == (2 if alias == "champion" else 1)
        assert registry.get(place, alias).id == two
        assert not files.exists(f"{workspace}/active.json")
        assert verify(place) == []
        if not killed:
            break
    assert n > 5


def test_nights_whose_labels_are_wrong_end_with_one_return(place: str, tmp_path: Path) -> None:
    """Each trains other weights, which are right about the source's wrong labels, and wrong in use."""
    rule, good = LiveRule(min_images=20), registry.get(place, "champion").id

    def night(number: int, answer: str) -> dict[str, Any]:
        review(place, rule)
        bad = make_version(place, f"night {number}")
        run, fence = started(str(tmp_path), f"{number:064x}")
        values = published(run, bad, fence, "champion")
        live, other = registry.get(place, "champion").id, good
        if pending := pending_candidate(place):
            other = pending.version
        answers = {good: ["a"] * 60}
        put_traffic(
            place, (live, other), *(answers.get(each, [answer] * 60) for each in (live, other)), name=f"{number}"
        )
        put_labels(place, {f"{number}/{row}": "a" for row in range(60)})
        return values

    statuses = [night(number, "b").get("status") for number in range(10)]
    assert [move.mark[0] for move in registry.history(place)] == ["night", "night", "return"]
    assert statuses == [None, *["candidate"] * 9]
    values = night(10, "a")  # the labels in the source are corrected
    assert "since a champion went back, it needs 100 labels, or a person who promotes it" in values["reason"]
    assert "60 of 100 labels known" in review(place, rule).findings[1].verdict.reason
    assert night(11, "a")["promote"] is False  # the candidate waits for more labels
    review(place, rule)
    assert registry.history(place)[-1].mark[0] == "review"
    assert "status" not in night(12, "a")  # and nights promote again
    assert registry.history(place)[-1].mark[0] == "night"
    assert verify(place) == []


@pytest.mark.parametrize("since", ["person", "rollback"])
def test_a_person_ends_the_time_after_a_return(place: str, tmp_path: Path, since: str) -> None:
    promote(place, make_version(place, "two"))
    promote(place, make_version(place, "one"), "return")
    assert needs_labels(place)
    promote(place, make_version(place, "three"))  # by a program of before
    assert needs_labels(place)
    if since == "person":
        promote(place, make_version(place, "four"), "")
    else:
        registry.rollback(place)
    run, fence = started(str(tmp_path))
    assert "status" not in published(run, make_version(place, "five"), fence, "champion")


def test_a_run_that_was_killed_goes_on_though_its_candidate_was_promoted(place: str, tmp_path: Path) -> None:
    promote(place, make_version(place, "two"))
    promote(place, make_version(place, "one"), "return")
    run, fence = started(str(tmp_path))
    three = make_version(place, "three")
    assert published(run, three, fence, "champion")["status"] == "candidate"
    files.write_json(f"{tmp_path}/active.json", run.as_json())  # as if killed before it was deleted
    promote(place, three, "review")
    again, fence = started(str(tmp_path))
    assert again.id == run.id
    assert published(again, three, fence, "champion")["status"] == "candidate"
    assert registry.get(place, "champion").id == three


@pytest.mark.parametrize(("first", "then"), [("champion", "candidate"), ("candidate", "champion")])
def test_a_run_that_was_killed_after_its_move_has_decided_whatever_it_finds_on_resumption(
    first: str, then: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine would keep the champion now, and the flag --shadow was added, or left out."""
    two = make_version(place, "two")
    run, fence = started(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", raising(StorageError("killed")))
        with pytest.raises(StorageError):
            published(run, two, fence, first)
    again, fence = started(str(tmp_path))
    values = publish(again, SLOW, two, fence, DETAILS, then)
    assert again == run
    assert values["promote"] is True
    assert values["reason"] == ("promoted: +3 points" if first == "champion" else "candidate: +3 points")
    assert values.get("status") == (None if first == "champion" else "candidate")
    assert registry.get(place, first).id == two
    assert verify(place) == []
