"""The decision of a retraining run as it is stored: `decision.json` of its folder, and `latest.json` of the newest run.

Decisions of earlier programs lack fields, and those of later ones may have more. What is there has the type that every
reader expects, or the file is damaged.
"""

from typing import Annotated, Any

import msgspec

from pipeline.storage import files

DECISION_NAME, LATEST_NAME = "decision.json", "latest.json"

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # a duration, or since 1970


class _Gain(msgspec.Struct):
    gain: float
    low: float | msgspec.UnsetType = msgspec.UNSET
    high: float | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if (self.low is msgspec.UNSET) != (self.high is msgspec.UNSET):
            raise ValueError("`low` and `high` belong together")


class _Data(msgspec.Struct):
    rows: dict[str, Count]
    quarantined_share: float = 0.0
    since: str | msgspec.UnsetType = msgspec.UNSET
    added: dict[str, Count] | None = None
    removed: dict[str, Count] | None = None
    changed: dict[str, Count] | None = None
    classes_added: list[str] | None = None
    classes_removed: list[str] | None = None

    def __post_init__(self) -> None:
        changes = (self.added, self.removed, self.changed, self.classes_added, self.classes_removed)
        if self.since is not msgspec.UNSET and None in changes:
            raise ValueError("`since` comes with all changes since then")


class _Drift(msgspec.Struct):
    warnings: list[str]
    class_mix: float | None = None
    brightness: float | None = None
    features: float | None = None
    thresholds: dict[str, float] = {}


class _Estimate(msgspec.Struct):
    seconds: dict[str, Seconds]
    basis: str = ""


class _Plan(msgspec.Struct):
    estimate: _Estimate | None = None
    cost_per_hour: float | None = None
    resumed: bool = False


class _Level(msgspec.Struct):
    night: str
    time: Seconds
    level: float
    per_year: float | None = None
    spent: float | None = None


class _Rules(msgspec.Struct):
    renamed: dict[str, str] = {}
    removed: list[str] = []


class _Classes(msgspec.Struct):
    renamed: dict[str, str] = {}
    merged: dict[str, list[str]] = {}
    added: list[str] = []
    removed: list[str] = []
    rules: _Rules = msgspec.field(default_factory=_Rules)


class _Recipe(msgspec.Struct):
    name: str = ""
    epochs: float = 0.0


class Facts(msgspec.Struct, kw_only=True):
    """The fields of a decision that are read again, as far as it has them. As in `overview.nights.Night`."""

    correct: dict[str, Count] | None = None
    fair_rows: Count | None = None
    gain: _Gain | None = None
    data: _Data | None = None
    drift: _Drift | None = None
    seconds: dict[str, Seconds] | None = None
    plan: _Plan | None = None
    replay: dict[str, Any] | None = None
    sequential: _Level | None = None
    status: str | None = None
    reason: str | None = None
    challenger: str | None = None
    champion_before: str | None = None
    finished: Seconds | None = None
    report: str | None = None
    comparison: str | None = None

    def __post_init__(self) -> None:
        if self.fair_rows and max((self.correct or {}).values(), default=0) > self.fair_rows:
            raise ValueError("`correct` is more than `fair_rows`")


class _Decision(Facts, kw_only=True):
    night: str
    promote: bool
    fingerprint: str
    dataset: str
    recipe: _Recipe
    pretrained: str | None = None
    classes: _Classes | None = None


def read_decision(uri: str) -> dict[str, Any]:
    """Returns a stored decision. Raises FileNotFoundError, or DamagedError if a field has another type."""
    values: dict[str, Any] = files.read_json(uri)
    files.as_record(values, uri, _Decision, "restore it from a copy of the workspace")
    return values
