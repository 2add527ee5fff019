"""Retraining: a better model goes live, decided by a promotion test, with drift checks and a model registry.

New raw images, a workspace and a recipe come in. A new version goes out, which the registry's alias `champion` names,
or the reason why the champion stays. The public functions are in `__all__`; the registry is the module `registry`.
"""

from typing import TYPE_CHECKING

from pipeline.core.lazy import lazy

if TYPE_CHECKING:
    from pipeline.retraining.classes import ClassRules
    from pipeline.retraining.decision.drift import Drift, Thresholds
    from pipeline.retraining.decision.promotion_gate import Check, Decision, Gate, decide
    from pipeline.retraining.live.limits import LiveRule
    from pipeline.retraining.live.review import Review, review
    from pipeline.retraining.live.shadow import LiveModels, LivePrediction, predict_live
    from pipeline.retraining.mlflow_mirror import mirror
    from pipeline.retraining.plan import Plan, RetrainOptions, plan_retraining
    from pipeline.retraining.registry import Move, Version
    from pipeline.retraining.registry_check import verify
    from pipeline.retraining.run import Outcome, retrain
    from pipeline.retraining.workspace import RetrainingRun

__all__ = [
    "Check",
    "ClassRules",
    "Decision",
    "Drift",
    "Gate",
    "LiveModels",
    "LivePrediction",
    "LiveRule",
    "Move",
    "Outcome",
    "Plan",
    "RetrainOptions",
    "RetrainingRun",
    "Review",
    "Thresholds",
    "Version",
    "decide",
    "mirror",
    "plan_retraining",
    "predict_live",
    "retrain",
    "review",
    "verify",
]
__getattr__ = lazy(
    __name__,
    {
        "classes": ("ClassRules",),
        "decision.drift": ("Drift", "Thresholds"),
        "live.limits": ("LiveRule",),
        "live.review": ("Review", "review"),
        "live.shadow": ("LiveModels", "LivePrediction", "predict_live"),
        "mlflow_mirror": ("mirror",),
        "plan": ("Plan", "RetrainOptions", "plan_retraining"),
        "decision.promotion_gate": ("Check", "Decision", "Gate", "decide"),
        "registry": ("Move", "Version"),
        "registry_check": ("verify",),
        "run": ("Outcome", "retrain"),
        "workspace": ("RetrainingRun",),
    },
)
