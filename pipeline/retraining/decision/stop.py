"""A run that drift stops before it trains: its decision and page are published as those of every run."""

from typing import Any

from pipeline.retraining.decision.drift import Drift
from pipeline.retraining.decision.promotion_gate import Check, Decision
from pipeline.retraining.workspace import RetrainingRun, finish

STOPPED = "stopped"


def publish_stop(run: RetrainingRun, drift: Drift, details: dict[str, Any]) -> dict[str, Any]:
    """Writes the decision of a run that drift has stopped, and returns the content of `decision.json`.

    No model was trained: `challenger` is None, and no alias moves. details: rows (of val), seconds and finished. Each
    step can be repeated after a kill.
    """
    checks = tuple(_check(name, drift) for name in ("class_mix", "brightness", "features") if _is_above(name, drift))
    reason = f"stopped before training: {'; '.join(drift.warnings)}"
    head = {"status": STOPPED, **Decision(False, checks).as_json(), "reason": reason, "challenger": None}
    nothing = {"fair_rows": 0, "drift": drift.as_json(), "report": None, "comparison": None}
    return finish(run, head, {**nothing, **details})


def _is_above(name: str, drift: Drift) -> bool:
    distance: float | None = getattr(drift, name)
    return distance is not None and distance > getattr(drift.thresholds, name)


def _check(name: str, drift: Drift) -> Check:
    found, allowed = getattr(drift, name), getattr(drift.thresholds, name)
    words = name.replace("_", " ")
    return Check(
        f"drift of {words}", False, found, allowed, f"distance {found:.3f}", f"stops the run above {allowed:g}"
    )
