"""A run that drift stops before it trains: its decision and page are published as those of every run."""

from typing import Any

from pipeline.retraining.decision.drift import Drift
from pipeline.retraining.decision.page import render_decision
from pipeline.retraining.decision.promotion_gate import Check, Decision
from pipeline.retraining.workspace import ACTIVE_NAME, DECISION_NAME, LATEST_NAME, PAGE_NAME, RetrainingRun
from pipeline.storage import files

STOPPED = "stopped"


def publish_stop(run: RetrainingRun, drift: Drift, details: dict[str, Any]) -> dict[str, Any]:
    """Writes the decision of a run that drift has stopped, and returns the content of `decision.json`.

    No model was trained: `challenger` is None, and no alias moves. details: rows (of val), seconds and finished. Each
    step can be repeated after a kill.
    """
    checks = tuple(_check(name, drift) for name in ("class_mix", "brightness", "features") if _is_above(name, drift))
    reason = f"stopped before training: {'; '.join(drift.warnings)}"
    values = {
        "night": run.id,
        "status": STOPPED,
        **Decision(False, checks).as_json(),
        "reason": reason,
        "challenger": None,
        "champion_before": run.champion.version if run.champion else None,
        "fingerprint": run.fingerprint,
        "recipe": run.recipe,
        "pretrained": run.pretrained,
        "dataset": run.dataset,
        "attempt": run.attempt,
        "fair_rows": 0,
        "drift": drift.as_json(),
        "report": None,
        "comparison": None,
        **details,
    }
    files.write_json(files.join(run.folder, DECISION_NAME), values, pretty=True)
    files.write_bytes(files.join(run.folder, PAGE_NAME), render_decision(run.folder, values).encode())
    files.write_json(files.join(run.workspace, LATEST_NAME), values, pretty=True)
    files.delete_files(run.workspace, [ACTIVE_NAME])
    return values


def _is_above(name: str, drift: Drift) -> bool:
    distance: float | None = getattr(drift, name)
    return distance is not None and distance > getattr(drift.thresholds, name)


def _check(name: str, drift: Drift) -> Check:
    found, allowed = getattr(drift, name), getattr(drift.thresholds, name)
    words = name.replace("_", " ")
    return Check(
        f"drift of {words}", False, found, allowed, f"distance {found:.3f}", f"stops the run above {allowed:g}"
    )
