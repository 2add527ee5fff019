"""Retraining runs for tests, without their source."""

import json
from dataclasses import asdict, replace
from typing import Any

from pipeline.config.presets import make_recipe
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.workspace import RetrainingRun


def planned_run(workspace: str, **changes: object) -> RetrainingRun:
    """Returns a run of the recipe `digits` without a champion; `changes` replaces fields."""
    recipe = json.loads(json.dumps(asdict(make_recipe("digits"))))
    return replace(RetrainingRun(workspace, "source", "f" * 64, recipe, None, Gate(), False), **changes)


def stored_decision(**changes: Any) -> dict[str, Any]:
    """Returns the content of a `decision.json`, with no more than each has; `changes` replaces and adds fields."""
    values = {"night": "a", "promote": False, "fingerprint": "f", "recipe": {"name": "digits"}, "dataset": "datasets/f"}
    return {**values, **changes}
