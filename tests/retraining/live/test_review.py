"""Reviews: candidates are promoted or dropped, champions go back once, whatever is killed and whoever else decides."""

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import RegistryError
from pipeline.retraining import registry
from pipeline.retraining.live import review as review_module
from pipeline.retraining.live import store
from pipeline.retraining.live.candidates import pending_candidate, sent_back
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.review import review
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from tests.support.kills import killed_at_write
from tests.support.trained.live import make_version, nominate, promote, put_labels, put_traffic

RULE = LiveRule(min_images=20)
A, B = ["a"] * 40, ["b"] * 40


def live(place: str, alias: str = "champion") -> str:
    return registry.get(place, alias).id


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.fixture
def pair(place: str) -> tuple[str, str]:
    """IDs of a champion, and of a candidate that passed the gate against it."""
    champion, candidate = make_version(place, "one"), make_version(place, "two")
    promote(place, champion)
    nominate(place, candidate)
    return champion, candidate


def test_without_a_candidate_and_answers_there_is_nothing_to_review(place: str) -> None:
    assert review(place).unused
    promote(place, make_version(place, "one"))
    assert review(place).unused
    assert not files.list_files(f"{place}/live")


def test_a_candidate_waits_and_is_promoted_with_its_numbers_in_the_history(place: str, pair: tuple[str, str]) -> None:
    champion, candidate = pair
    assert [each.verdict.action for each in review(place, RULE).findings] == ["keep", "wait"]
    put_traffic(place, (champion, candidate), A, [*A[:36], *B[:4]])
    done = review(place, RULE)
    assert [each["kind"] for each in done.decisions] == ["review"]
    assert not done.returned
    assert not done.dropped
    assert live(place) == candidate
    assert pending_candidate(place) is None
    moved = registry.history(place)[-1]
    assert "another class than the champion for 4 of 40 images (10 %)" in moved.reason
    stored = store.read_review(place, moved.mark[1])
    assert stored["numbers"]["pair"]["disagreements"] == 4
    assert stored["inputs"]["traffic"] == [f"live/traffic/{champion}/{candidate}/day.parquet"]
    assert review(place, RULE).decisions == ()  # it is told, and the new champion stays
    assert len(registry.history(place)) == 2
    assert verify(place) == []


def test_a_candidate_that_fails_is_dropped_and_its_weights_are_not_promoted_again(
    place: str, pair: tuple[str, str]
) -> None:
    champion, candidate = pair
    put_traffic(place, pair, A, [None] * 40)
    done = review(place, RULE)
    assert done.dropped
    assert live(place) == champion == live(place, "candidate")
    assert pending_candidate(place) is None
    assert (
        f"dropped {candidate}: the candidate gave no answer for 40 of 40"
        in registry.history(place, "candidate")[-1].reason
    )
    assert sent_back(place) == {registry.read_version(place, candidate).files["model.safetensors"]}
    promote(place, candidate, "")  # by a person
    assert sent_back(place) == set()
    assert verify(place) == []


def test_a_candidate_never_jumps_over_a_champion_that_changed_since(place: str, pair: tuple[str, str]) -> None:
    put_traffic(place, pair, A, A)
    newer = make_version(place, "three")
    promote(place, newer)
    promote(place, pair[0], "")  # the same version as before, but another move
    done = review(place, RULE)
    assert [each["kind"] for each in done.decisions] == ["outdated"]
    assert live(place) == pair[0]
    assert "compared with the champion's move 1, and the champion's move 3 is live" in done.decisions[0]["reason"]
    assert sent_back(place) == set()  # it did nothing wrong
    nominate(place, pair[1], 2)
    assert review(place, RULE).decisions[0]["kind"] == "review"
    assert live(place) == pair[1]
    assert verify(place) == []


def test_a_candidate_that_was_decided_on_never_waits_again(place: str, pair: tuple[str, str]) -> None:
    """Although its alias names another version than the champion once the champion has moved on."""
    put_traffic(place, pair, A, A)
    review(place, RULE)
    promote(place, make_version(place, "three"))
    assert pending_candidate(place) is None
    registry.rollback(place)
    registry.rollback(place)
    assert live(place) == pair[0]
    assert pending_candidate(place) is None
    dropped = make_version(place, "four")
    nominate(place, dropped)
    put_traffic(place, (pair[0], dropped), A, B, name="later")
    assert review(place, RULE).dropped
    promote(place, make_version(place, "five"))
    assert pending_candidate(place) is None
    assert not review(place, RULE).decisions
    assert verify(place) == []


def test_in_a_bucket_a_candidate_is_promoted_and_comes_back(s3: str, tmp_path: Path) -> None:
    place = f"{s3}/live-{tmp_path.name}"
    one, two = make_version(place, "one"), make_version(place, "two")
    promote(place, one)
    nominate(place, two)
    put_traffic(place, (one, two), A, A)
    assert review(place, RULE).decisions[0]["kind"] == "review"
    assert live(place) == two
    put_back(place, (one, two))
    assert review(place, RULE).returned
    assert live(place) == one
    assert not review(place, RULE).decisions
    assert verify(place) == []
    files.delete_tree(place)


def put_back(place: str, versions: tuple[str, str]) -> None:
    """Stores 40 labelled images about which the first version is right and the second one wrong."""
    put_traffic(place, (versions[1], versions[0]), B, A, name=f"day-{versions[1]}")
    put_labels(place, {f"day-{versions[1]}/{row}": "a" for row in range(40)})


def test_a_champion_goes_back_once_and_a_person_may_promote_it_again(place: str) -> None:
    one, two, three = (make_version(place, name) for name in ("one", "two", "three"))
    for version in (one, two, three):
        promote(place, version)
    put_back(place, (two, three))
    put_traffic(place, (two, one), B, A, name="other")  # the version before looks bad, too
    put_labels(place, {f"other/{row}": "a" for row in range(40)})
    done = review(place, RULE)
    assert done.returned
    assert live(place) == two
    moved = registry.history(place)[-1]
    assert moved.mark[0] == "return"
    assert "(0 won, 40 lost, sequential p = " in moved.reason
    again = review(place, RULE)
    assert not again.decisions
    assert again.findings[0].verdict.action == "return"
    assert "stays until a model is promoted" in again.findings[0].held
    assert live(place) == two
    promote(place, three, "")
    held = review(place, RULE)
    assert "a person made it live" in held.findings[0].held
    assert live(place) == three
    assert verify(place) == []


def test_a_first_champion_has_nothing_to_go_back_to(place: str) -> None:
    one = make_version(place, "one")
    promote(place, one)
    put_traffic(place, (one, None), [None] * 40)
    assert "no version before it" in review(place, RULE).findings[0].held
    assert live(place) == one


def test_ten_oscillating_nights_end_with_one_return(place: str) -> None:
    """Each night the labels speak against whichever of two models is live, and the gate likes the other one."""
    one, two = make_version(place, "one"), make_version(place, "two")
    promote(place, one)
    promote(place, two)
    returns = 0
    for night in range(10):
        bad, good = live(place), two if live(place) == one else one
        put_traffic(place, (bad, good), B, A, name=f"night-{night}")
        put_labels(place, {f"night-{night}/{row}": "a" for row in range(40)})
        returns += review(place, RULE).returned
        weights = registry.read_version(place, two).files["model.safetensors"]
        if live(place) == one and weights not in sent_back(place):
            promote(place, two)
    assert returns == 1
    assert live(place) == one
    assert len(registry.history(place)) == 3
    assert verify(place) == []


events = st.lists(
    st.tuples(
        st.sampled_from(["gate", "shadow", "person", "rollback", "bad", "good", "failures", "review"]),
        st.integers(0, 3),
    ),
    max_size=10,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=events)
def test_it_never_flaps(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    """After any events: between two returns a promotion; nothing that was sent back is promoted by a program."""
    place = str(tmp_path_factory.mktemp("registry"))
    ids = [make_version(place, name) for name in "wxyz"]
    promote(place, ids[0])
    for number, (event, which) in enumerate(steps, 1):
        happen(place, event, ids[which], number)
        review(place, RULE)
    assert not review(place, RULE).decisions  # a second look at the same changes nothing
    back, moves = set[str](), registry.history(place)
    for before, move in itertools.pairwise(moves):
        kind = move.mark[0]
        if kind == "return":
            assert before.mark[0] in ("night", "review")
            back.add(before.version)
        elif kind == "":
            back.discard(move.version)
        else:
            assert move.version not in back
    assert verify(place) == []


def happen(place: str, event: str, version: str, number: int) -> None:
    """Lets one thing happen to a registry, as the programs and people would do it."""
    champion, name = live(place), f"event-{number}"
    allowed = registry.read_version(place, version).files["model.safetensors"] not in sent_back(place)
    if event == "gate" and allowed and version != champion:
        promote(place, version, "night", number)
    elif event == "shadow" and allowed and version != champion:
        nominate(place, version, number)
        put_traffic(place, (champion, version), A, A, name)
    elif event == "person" and version != champion:
        promote(place, version, "")
    elif event == "rollback" and registry.history(place)[-1].before:
        registry.rollback(place)
    elif event in ("bad", "good") and version != champion:
        put_traffic(place, (champion, version), B, A, name)
        put_labels(place, {f"{name}/{row}": "a" if event == "bad" else "b" for row in range(40)})
    elif event == "failures":
        put_traffic(place, (champion, None), [None] * 40, name=name)


@pytest.mark.parametrize("back", [False, True])
def test_of_reviews_at_once_exactly_one_moves_the_champion(place: str, back: bool) -> None:
    one, two = make_version(place, "one"), make_version(place, "two")
    promote(place, one)
    if back:
        promote(place, two)
        put_back(place, (one, two))
    else:
        nominate(place, two)
        put_traffic(place, (one, two), A, A)
    moves, start, errors = len(registry.history(place)), threading.Barrier(6), list[str]()

    def decide() -> None:
        start.wait()
        try:
            review(place, RULE)
        except RegistryError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=decide) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.history(place)) == moves + 1
    assert live(place) == (one if back else two)
    assert all("another process has moved it meanwhile" in each for each in errors)
    assert verify(place) == []


@pytest.mark.parametrize("later", [[None] * 40, A[:10]])
def test_a_recorded_promotion_gives_way_to_a_drop_by_what_is_known_now(
    place: str, pair: tuple[str, str], later: list[str | None]
) -> None:
    """One review saw no failures and was killed before it moved anything; the next one sees them all."""
    put_traffic(place, pair, A, A)
    candidate = pending_candidate(place)
    assert candidate is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "move", stop)
        with pytest.raises(KeyboardInterrupt):
            review(place, RULE)
    put_traffic(place, pair, A[: len(later)], later, name="later")
    if None in later:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "move", stop)
            with pytest.raises(KeyboardInterrupt):
                review(place, RULE)  # it is killed, too
        put_traffic(place, pair, A * 200, A * 200, name="latest")  # by now it would pass again
    done = review(place, RULE if None in later else replace(RULE, min_images=1000))  # to wait contradicts nothing
    assert [each["kind"] for each in done.decisions] == ["dropped" if None in later else "review"]
    assert live(place) == pair[0 if None in later else 1]
    assert pending_candidate(place) is None
    assert not review(place, RULE).decisions
    assert verify(place) == []


@pytest.mark.parametrize("case", ["return", "drop"])
def test_what_the_receiver_refuses_is_told_again_and_counts_once(case: str, place: str) -> None:
    one, two = make_version(place, "one"), make_version(place, "two")
    promote(place, one)
    if case == "return":
        promote(place, two)
        put_back(place, (one, two))
    else:
        nominate(place, two)
        put_traffic(place, (one, two), A, B)
    told, accepts = list[str](), False

    def tell(content: dict[str, Any]) -> bool:
        told.append(content["review"])
        return accepts

    first, second = review(place, RULE, tell), review(place, RULE, tell)
    assert (first.returned, first.dropped) == (case == "return", case == "drop")
    assert (second.returned, second.dropped, second.decisions) == (False, False, ())
    accepts = True
    assert not review(place, RULE, tell).decisions
    assert not review(place, RULE, tell).decisions
    assert len(told) == 3
    assert len(set(told)) == 1


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_night_that_began_meanwhile_decides_first(
    place: str, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_traffic(place, pair, A, A)
    decide = review_module._decide

    def slow(*arguments: Any) -> Any:
        registry.take_fence(place, "champion")
        return decide(*arguments)

    monkeypatch.setattr(review_module, "_decide", slow)
    with pytest.raises(RegistryError, match="took a later fencing token"):
        review(place, RULE)
    assert live(place) == pair[0]


@pytest.mark.parametrize("case", ["promote", "drop", "return"])
def test_killed_at_any_write_a_review_is_completed_by_the_next_one(case: str, tmp_path: Path) -> None:
    """Before each of its writes, which is after the one before it; then it is started once more."""
    posted: list[Any] = []

    def tell(content: dict[str, Any]) -> bool:
        posted.append(content)
        return True

    for n in itertools.count(1):
        place = str(tmp_path / str(n))
        one, two = make_version(place, "one"), make_version(place, "two")
        promote(place, one)
        if case == "return":
            promote(place, two)
            put_back(place, (one, two))
        else:
            nominate(place, two)
            put_traffic(place, (one, two), A, A if case == "promote" else B)
        posted.clear()
        killed = killed_at_write(n, lambda place=place: review(place, RULE, tell))
        done = review(place, RULE, tell)
        assert live(place) == (two if case == "promote" else one)
        assert len(registry.history(place)) == {"return": 3, "promote": 2, "drop": 1}[case]
        assert len({each["review"] for each in posted}) == 1 <= len(posted) <= 2  # told at least once
        assert bool(done.decisions) == killed
        assert done.returned == (killed and case == "return")
        assert verify(place) == []
        assert not review(place, RULE, tell).decisions
        if not killed:
            break
    assert n > 4


def test_damage_of_records_is_named(place: str, pair: tuple[str, str]) -> None:
    put_traffic(place, pair, A, A)
    put_labels(place, {"day/1": "a"})
    review(place, RULE)
    assert verify(place) == []
    (labels,) = store.label_uris(place)
    (traffic,) = store.traffic_uris(place)
    files.write_bytes(labels, b"key,label\nday/1,b\n")
    files.write_bytes(traffic, b"no parquet")
    mark = registry.history(place)[-1].mark[1]
    content = files.read_json(store.review_uri(place, mark))
    files.write_bytes(store.review_uri(place, mark), json.dumps({**content, "reason": "other"}).encode())
    problems = "; ".join(verify(place))
    for words in ("the review has changed", "no record of predictions, or damaged", f"{labels}: has changed"):
        assert words in problems


def test_a_damaged_file_ends_no_review(place: str, pair: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    put_traffic(place, pair, A, [None] * 40)
    put_labels(place, {"day/1": "a"})
    files.write_bytes(store.traffic_uris(place)[0], b"no parquet")
    files.write_bytes(store.label_uris(place)[0], b"no labels")
    put_traffic(place, pair, A, A, name="other")
    assert review(place, RULE).decisions[0]["kind"] == "review"
    assert live(place) == pair[1]
    assert "or damaged; remove it; it doesn't count" in caplog.text
    assert "no column 'key'" in caplog.text


def test_labels_of_unknown_classes_and_keys_are_counted(place: str, pair: tuple[str, str]) -> None:
    put_traffic(place, pair, A, A)
    put_traffic(place, pair, B, B)  # the same name: the same record, which stays as it is
    put_traffic(
        place, (pair[0], None), B, name="day"
    )  # the champion alone, later: of each key the newest answer counts
    put_labels(place, {"day/1": "b", "day/2": "z", "nothere": "a"})
    labels = review(place, RULE).labels
    assert (labels.lines, labels.unknown, labels.unpredicted) == (3, 1, 1)
    assert (
        labels.text() == "3 lines; 1 of an unknown class, left out; 1 of an image that these models weren't asked about"
    )
    assert store.read_review(place, registry.history(place)[-1].mark[1])["numbers"]["pair"]["labelled"] == 1


def test_of_a_key_the_newest_answer_counts_and_of_decisions_the_first(place: str, pair: tuple[str, str]) -> None:
    put_traffic(place, pair, A, A)
    put_traffic(place, (pair[0], None), [*A[:30], *B[:10]], name="day")  # the same keys, later, by the champion alone
    put_labels(place, {f"day/{row}": "a" for row in range(40)})
    alone = review(place, LiveRule()).findings[0].numbers["alone"]
    assert (alone["images"], alone["labelled"], alone["correct"]) == (40, 40, 30)
    assert store.decide_once(place, "candidate", 7, "a" * 12) == "a" * 12
    assert store.decide_once(place, "candidate", 7, "b" * 12) == "a" * 12
