"""The finished retraining runs of a workspace, from the summaries in `WORKSPACE/nights.json` and each `decision.json`.

`nights.json` is a cache: it may be deleted, and is made anew from the decisions, also those of earlier programs.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from pipeline.core.errors import DamagedError
from pipeline.retraining.decision_file import DECISION_NAME, Count, Facts, Seconds, read_decision
from pipeline.retraining.overview.times import price
from pipeline.retraining.workspace import night_uri, read_latest
from pipeline.storage import files

NIGHTS_NAME = "nights.json"
_SCHEMA = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Night:
    """A finished retraining run. What a decision of an earlier program lacks is None, or empty."""

    id: str
    finished: float
    """When it was decided, in seconds since 1970; of earlier programs, when its file was written."""
    status: str
    """"promoted", "candidate" (to be tried in the champion's shadow), "kept" or "stopped"."""
    reason: str
    challenger: str | None = None
    champion_before: str | None = None
    correct: dict[str, int] = field(default_factory=dict)
    """{"champion": rows, "challenger": rows} that each classifies correctly, of `fair_rows`."""
    fair_rows: int = 0
    gain: dict[str, float] | None = None
    """The gain of top-1, with low and high of its 95 % interval, as shares."""
    data: dict[str, Any] | None = None
    """Rows and classes, as from `data_changes`."""
    drift: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """What each stage took."""
    plan: dict[str, Any] | None = None
    """What was expected (`Estimate.as_json`), cost_per_hour, and whether the run was resumed."""
    replay: dict[str, Any] | None = None
    """Rows of an epoch, where old ones are a share of it (`replay.with_replay`)."""
    sequential: dict[str, Any] | None = None
    """Level of the promotion test, and the yearly limit of false promotions that it is a part of."""
    recipe: str = ""
    """Name of the recipe."""
    epochs: float = 0
    report: str | None = None
    """Evaluation of the challenger, relative to the workspace."""
    comparison: str | None = None
    """Comparison with the champion, relative to the workspace."""

    @property
    def champion(self) -> tuple[int, int] | None:
        """Of the model that was live after the run: the rows that it classifies correctly, and the rows."""
        name = "challenger" if self.status == "promoted" else "champion"
        return (self.correct[name], self.fair_rows) if self.fair_rows and name in self.correct else None

    @property
    def total_seconds(self) -> float:
        """What all stages took."""
        return sum(self.seconds.values())

    @property
    def cost(self) -> float | None:
        """What the run cost; None if the machines had no price."""
        return self.total_seconds / 3600 * price(self.plan) or None


def accuracy_of(nights: Sequence[Night], version: str) -> tuple[int, int] | None:
    """Returns (correct, rows) of a version in the newest run that has looked at it; None if none has.

    nights: the oldest first.
    """
    for night in reversed(nights):
        for name, found in (("challenger", night.challenger), ("champion", night.champion_before)):
            if found == version and night.fair_rows and name in night.correct:
                return night.correct[name], night.fair_rows
    return None


def read_nights(workspace: str, update: bool = False) -> list[Night]:
    """Returns all finished runs, the oldest first.

    A decision that can't be read is left out, with a warning. update: whether to write `nights.json`, so that the next
    call reads only the decisions that are new since.
    """
    place = files.join(workspace, NIGHTS_NAME)
    known = _cached(place)
    names = files.list_directories(files.join(workspace, "nights"))
    read = {name: known.get(name) or _read(workspace, name) for name in names}
    found = {name: night for name, night in read.items() if night is not None}
    latest = read_latest(workspace)
    if latest:  # it may have been decided anew
        found[latest["night"]] = summary(latest, found.get(latest["night"]))
    nights = sorted(found.values(), key=lambda each: (each.finished, each.id))
    if update and found != known:
        files.write_json(place, {"schema": _SCHEMA, "nights": [asdict(each) for each in nights]})
    return nights


def summary(decision: dict[str, Any], known: Night | None = None, written: float = 0.0) -> Night:
    """Returns a decision's summary.

    known: the summary of before. written: when the file was written, for a decision that has no time.
    """
    get, recipe = decision.get, decision.get("recipe") or {}
    status = get("status") or ("promoted" if get("promote") else "kept")
    correct, rows = get("correct") or {}, get("fair_rows") or 0
    gain = get("gain")
    if gain is None and rows and {"champion", "challenger"} <= correct.keys():
        gain = {"gain": (correct["challenger"] - correct["champion"]) / rows}
    return Night(
        id=decision["night"],
        finished=get("finished") or (known.finished if known else written),
        status=status,
        reason=get("reason") or "",
        challenger=get("challenger"),
        champion_before=get("champion_before"),
        correct=correct,
        fair_rows=rows,
        gain=gain,
        data=get("data"),
        drift=get("drift"),
        seconds=get("seconds") or {},
        plan=get("plan"),
        replay=get("replay"),
        sequential=get("sequential"),
        recipe=recipe.get("name") or "",
        epochs=recipe.get("epochs") or 0,
        report=_below_night(decision, get("report")),
        comparison=_below_night(decision, get("comparison")),
    )


def _below_night(decision: dict[str, Any], uri: str | None) -> str | None:
    """Returns a file of a run relative to the workspace, which may have been moved since."""
    _, found, tail = (uri or "").partition(f"/nights/{decision['night']}/")
    return f"nights/{decision['night']}/{tail}" if found else None


def _read(workspace: str, name: str) -> Night | None:
    place = files.join(night_uri(workspace, name), DECISION_NAME)
    if not files.exists(place):
        return None  # at work, or interrupted
    try:
        return summary(read_decision(place), written=files.entry_of(place).modified_ns / 1e9)
    except DamagedError as error:
        log.warning("%s; the run is left out of the list", error)
        return None


def _cached(place: str) -> dict[str, Night]:
    """Returns {ID: night} of `nights.json`; empty if there is none of this form."""
    if not files.exists(place):
        return {}
    try:
        values = files.read_json(place)
        form = files.as_record(values, place, _Cache, "remove it")
        return {each["id"]: Night(**each) for each in values["nights"]} if form.schema == _SCHEMA else {}
    except (DamagedError, TypeError):  # of another program: made anew
        return {}


class _Summary(Facts, kw_only=True):
    id: str
    finished: Seconds
    status: str
    reason: str
    correct: dict[str, Count]
    fair_rows: Count
    seconds: dict[str, Seconds]
    recipe: str = ""
    epochs: float = 0


class _Cache(msgspec.Struct):
    schema: int
    nights: list[_Summary]
