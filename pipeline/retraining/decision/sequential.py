"""Sequential testing: the level of tonight's test, so that all nights keep to a limit of false promotions a year.

The method is alpha-spending: the levels of all tests add up to no more than a budget (Foster and Stine, J. R. Statist.
Soc. B 70, 2008; Tian and Ramdas, Stat. Methods Med. Res. 30, 2021, arXiv 1910.04900). A challenger that is no better
passes at most as often as its level says, so the budget bounds the expected number of false promotions (the per-family
error rate), and the chance of a single one. That holds however the nights depend on each other, which they do: they
share the validation images, and the luck that the champion had with them. Rules that earn level by promotions or by
large p-values need independent tests, and are left out for that reason (docs/log.md has the comparison).

The budget is spent along the calendar, by a linear use function (Lan and DeMets, Biometrika 70, 1983; by calendar time:
Statistics in Medicine 8, 1989). So neither the number nor the times of nights need to be known. It works as an account:

- It is full at the first night, with a twelfth of the yearly limit, and fills at eleven twelfths of the limit a year.
- A night spends half of what is there, at most the gate's level. So a second try of the same day still has a level.

Whatever the nights do, no 365 days spend more than the limit: a full account and a year's inflow. Nightly runs end up
with 11/12 * limit / 365 each, weekly ones with seven times as much, and monthly ones with nearly the gate's level.

`levels.json` in the workspace lists (night, time, level). A night is entered once, before its decision is made, and a
night that is resumed after a kill finds its line. The account follows from the lines alone. Each line also stands in
the `decision.json` of its night, and if the file is lost, it is made again from these.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import DamagedError, StorageError
from pipeline.core.shares import counted
from pipeline.retraining.decision_file import read_decision
from pipeline.storage import files

LEVELS_NAME = "levels.json"
_YEAR_SECONDS = 365 * 86_400.0
_CAPACITY = 1 / 12  # of the account, as a share of the yearly limit; what flows in during a year is the rest
_SPENT = 0.5  # share of the account that a night spends

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """The level of one night: a line of `levels.json`."""

    night: str  # ID of the retraining run
    time: float  # seconds since the epoch, when the level was taken
    level: float


@dataclass(frozen=True)
class NightLevel:
    """Tonight's level and the state of the account. It is written to `decision.json`, as `sequential`."""

    night: str
    time: float  # seconds since the epoch, when the level was taken
    level: float  # of tonight's test of the gain
    per_year: float  # the limit of false promotions
    spent: float  # by the nights of the last 365 days, tonight's included
    nights: int  # of the last 365 days that spent it
    left: float  # in the account after tonight

    @property
    def text(self) -> str:
        """One sentence for people."""
        return (
            f"level {self.level:.2g} tonight, by the limit of {self.per_year:g} on the false promotions to be expected "
            f"in 365 days: {counted(self.nights, 'night')} spent {self.spent:.2g} of it, and "
            f"{self.left:.2g} is left to spend now"
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the values of `decision.json`."""
        return {**asdict(self), "text": self.text}


def account(spent: Sequence[Spent], per_year: float, now: float) -> float:
    """Returns what is in the account at a time; below 0 if earlier nights spent more than this limit allows.

    spent: of all nights before, in their order. per_year: the limit, for all nights. now: seconds since the epoch. A
    clock that goes back adds nothing.
    """
    full = _CAPACITY * per_year
    inflow = (1 - _CAPACITY) * per_year / _YEAR_SECONDS
    balance = full
    for number, each in enumerate(spent):
        before = spent[number - 1].time if number else each.time
        balance = min(full, balance + inflow * max(0.0, each.time - before)) - each.level
    since = max(0.0, now - spent[-1].time) if spent else 0.0
    return min(full, balance + inflow * since)


def next_level(balance: float, most: float) -> float:
    """Returns the level of a night. balance: of the account. most: the gate's level."""
    return min(most, max(0.0, _SPENT * balance))


def take_level(workspace: str, night: str, per_year: float, most: float, now: float | None = None) -> NightLevel:
    """Returns the level of a night, and enters it into `levels.json`; a night that is there keeps its level.

    workspace: URI. night: ID of the retraining run. per_year: limit of false promotions. most: the gate's level. now:
    seconds since the epoch, None for the clock. Several processes may call it at a time: a line that another one has
    written in between is read again.
    """
    now = time.time() if now is None else now
    while True:
        spent, version = _read(workspace)
        known = next((number for number, each in enumerate(spent) if each.night == night), None)
        if known is not None:
            return _state(spent[: known + 1], per_year)
        level = next_level(account(spent, per_year, now), most)
        spent.append(Spent(night, now, level))
        if _write(workspace, spent, version):
            return _state(spent, per_year)


def _state(spent: Sequence[Spent], per_year: float) -> NightLevel:
    """Returns the state after the last of these nights."""
    last = spent[-1]
    year = [each.level for each in spent if each.time > last.time - _YEAR_SECONDS]
    left = account(spent, per_year, last.time)
    return NightLevel(last.night, last.time, last.level, per_year, sum(year), len(year), left)


def _read(workspace: str) -> tuple[list[Spent], str]:
    """Returns the lines, and the version of the file for a conditional write; "" if there is no file."""
    place = files.join(workspace, LEVELS_NAME)
    found = files.read_version(place)
    if found is None:
        return _from_decisions(workspace), ""
    try:
        return [_line(each) for each in json.loads(found[0])["nights"]], found[1]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{place}: damaged ({error}); remove it: it is made again from the decisions") from error


def _write(workspace: str, spent: list[Spent], version: str) -> bool:
    place = files.join(workspace, LEVELS_NAME)
    data = json.dumps({"nights": [asdict(each) for each in spent]}, indent=1).encode() + b"\n"
    return files.replace(place, data, version) is not None if version else files.write_once(place, data)


def _from_decisions(workspace: str) -> list[Spent]:
    """Returns the lines of the nights that have published a decision with a level, oldest first.

    A decision that can't be read is left out, with a warning.
    """
    nights, lines = files.join(workspace, "nights"), list[Spent]()
    for name in files.list_directories(nights):
        place = files.join(nights, name, "decision.json")
        if not files.exists(place):
            continue
        try:
            values = read_decision(place).get("sequential")
        except DamagedError as error:
            log.warning("%s; the level of this night isn't counted", error)
            continue
        lines += [_line(values)] if values else []
    return sorted(lines, key=lambda each: each.time)


def _line(values: Any) -> Spent:
    """Returns a line of JSON values. Raises ValueError, KeyError or TypeError if it isn't one."""
    return Spent(str(values["night"]), float(values["time"]), float(values["level"]))
