"""The account of significance: no year spends more than its limit, whatever the nights do, and none spends twice."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import StorageError, UnavailableError
from pipeline.retraining.decision import sequential
from pipeline.retraining.decision.sequential import Spent, account, next_level, take_level
from pipeline.storage import files
from tests.support.trained.retraining import stored_decision

DAY = 86_400.0
YEAR = 365 * DAY
NOW = 1.8e9


def spend(times: list[float], per_year: float, most: float = 0.05) -> list[Spent]:
    spent = list[Spent]()
    for number, time in enumerate(times):
        spent.append(Spent(str(number), time, next_level(account(spent, per_year, time), most)))
    return spent


@given(
    gaps=st.lists(st.floats(-2 * DAY, 200 * DAY), max_size=60),
    per_year=st.floats(0.01, 30),
    most=st.floats(0.001, 0.4),
)
def test_no_365_days_spend_more_than_the_limit(gaps: list[float], per_year: float, most: float) -> None:
    """Whatever the times: many in a day, months without any, a clock that goes back."""
    spent = spend(np.cumsum([NOW, *gaps]).tolist(), per_year, most)
    levels = [each.level for each in spent]
    assert all(0 <= level <= most for level in levels)
    assert account(spent, per_year, spent[-1].time) >= 0
    passed = np.cumsum([0.0, *(max(0.0, gap) for gap in gaps)])  # days that the account counts
    for first in range(len(spent)):
        inside = (passed >= passed[first]) & (passed < passed[first] + YEAR)
        assert np.array(levels)[inside].sum() <= per_year * (1 + 1e-9)


@pytest.mark.parametrize(
    ("days", "per_year", "level"),
    [
        (1, 1.0, 11 / 12 / 365),
        (1, 0.1, 1.1 / 12 / 365),
        (7, 1.0, 7 * 11 / 12 / 365),
        (30, 1.0, 1 / 24),  # half of a full account: nearly the gate's level
        (30, 2.0, 0.05),  # the gate's level is the most
        (1, 40.0, 0.05),
    ],
)
def test_regular_nights_end_up_with_their_share_of_the_inflow(days: float, per_year: float, level: float) -> None:
    spent = spend([NOW + number * days * DAY for number in range(60)], per_year)
    assert spent[-1].level == pytest.approx(level, rel=1e-3)
    assert spent[0].level == min(0.05, per_year / 24)


def test_a_year_of_nights_spends_the_limit_and_not_more() -> None:
    """Of a full account and a year's inflow all but the last half is spent."""
    levels = [each.level for each in spend([NOW + number * DAY for number in range(365)], 1.0)]
    assert 0.99 < sum(levels) <= 1.0
    assert levels[:3] == pytest.approx([1 / 24, 0.0221, 0.0123], abs=1e-4)


def test_a_limit_that_is_lowered_stops_the_spending_until_the_account_has_recovered() -> None:
    spent = spend([NOW + number * DAY for number in range(100)], 12.0)
    lowered = account(spent, 1.0, NOW + 100 * DAY)
    assert lowered < 0
    assert next_level(lowered, 0.05) == 0
    assert account(spent, 1.0, NOW + 5 * YEAR) == pytest.approx(1 / 12)


def test_a_night_spends_once_however_often_it_is_resumed(tmp_path: Path) -> None:
    work = str(tmp_path)
    monday = take_level(work, "monday", 1.0, 0.05, NOW)
    assert monday.level == monday.spent == pytest.approx(1 / 24)
    assert monday.nights == 1
    tuesday = take_level(work, "tuesday", 1.0, 0.05, NOW + DAY)
    assert tuesday.level < monday.level
    assert tuesday.spent == monday.level + tuesday.level
    assert take_level(work, "monday", 1.0, 0.05, NOW + 9 * DAY) == monday
    assert take_level(work, "tuesday", 1.0, 0.05, NOW + 9 * DAY) == tuesday
    assert len(json.loads((tmp_path / "levels.json").read_text())["nights"]) == 2
    assert "2 nights spent 0.064 of it" in tuesday.text


def test_a_lost_list_is_made_again_from_the_decisions(tmp_path: Path) -> None:
    work = str(tmp_path)
    for number, night in enumerate(("b", "a", "c")):
        level = take_level(work, night, 1.0, 0.05, NOW + number * DAY)
        files.write_json(f"{work}/nights/{night}/decision.json", stored_decision(sequential=level.as_json()))
    files.write_json(
        f"{work}/nights/first/decision.json", stored_decision(promote=True)
    )  # of a first model, or of an older version
    (tmp_path / "nights" / "killed").mkdir()
    known = take_level(work, "c", 1.0, 0.05)
    (tmp_path / "levels.json").unlink()
    assert take_level(work, "c", 1.0, 0.05) == known
    whole = take_level(work, "d", 1.0, 0.05, NOW + 3 * DAY)
    assert whole.nights == 4
    for damaged in ("[", "[]", '{"nights": [3]}', '{"nights": [{"night": "a", "time": null, "level": 0.1}]}'):
        (tmp_path / "levels.json").write_text(damaged)
        with pytest.raises(StorageError, match="remove it"):
            take_level(work, "d", 1.0, 0.05)


@pytest.mark.parametrize(
    "damaged", ["", "[]", "3", '{"sequential": 3}', '{"sequential": {"night": "b", "time": null}}']
)
def test_a_damaged_decision_is_left_out_with_a_warning(
    damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = str(tmp_path)
    level = take_level(work, "a", 1.0, 0.05, NOW)
    files.write_json(f"{work}/nights/a/decision.json", stored_decision(sequential=level.as_json()))
    (tmp_path / "nights" / "b").mkdir()
    (tmp_path / "nights" / "b" / "decision.json").write_text(damaged)
    (tmp_path / "levels.json").unlink()
    assert take_level(work, "c", 1.0, 0.05, NOW).nights == 2
    assert "nights/b/decision.json: damaged" in caplog.text


def test_levels_are_not_made_again_without_a_decision_that_the_storage_does_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be written without it, and the year would allow more than its limit."""
    work = str(tmp_path)
    files.write_json(
        f"{work}/nights/a/decision.json", stored_decision(sequential=take_level(work, "a", 1.0, 0.05, NOW).as_json())
    )
    (tmp_path / "levels.json").unlink()

    def away(uri: str) -> Any:
        raise UnavailableError(f"{uri}: no answer")

    monkeypatch.setattr(files, "read_json", away)
    with pytest.raises(UnavailableError):
        take_level(work, "b", 1.0, 0.05, NOW)
    assert not (tmp_path / "levels.json").exists()


def test_of_two_processes_that_spend_at_a_time_both_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes between the read and the write of this one, in an empty workspace and in a used one."""
    work, read = str(tmp_path), sequential._read

    def interfering(night: str) -> Callable[[str], tuple[list[Spent], str]]:
        def interfere(place: str) -> tuple[list[Spent], str]:
            found = read(place)
            monkeypatch.setattr(sequential, "_read", read)
            take_level(work, night, 1.0, 0.05, NOW)
            return found

        return interfere

    for mine, other in (("a", "b"), ("c", "d")):
        monkeypatch.setattr(sequential, "_read", interfering(other))
        take_level(work, mine, 1.0, 0.05, NOW)
    nights = [Spent(**each) for each in json.loads((tmp_path / "levels.json").read_text())["nights"]]
    assert [each.night for each in nights] == ["b", "a", "d", "c"]
    assert [asdict(each) for each in nights] == [
        {"night": each.night, "time": NOW, "level": pytest.approx(1 / 24 / 2**number)}
        for number, each in enumerate(nights)
    ]
