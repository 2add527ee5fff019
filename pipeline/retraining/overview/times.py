"""The time and the price of a retraining run as text: what was expected, and what it took."""

from typing import Any


def time_and_money(seconds: float, cost_per_hour: float) -> str:
    """Returns a time, with its price if the machines have one: `12 min (0.40)`."""
    time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    time = time if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{time} ({seconds / 3600 * cost_per_hour:.2f})" if cost_per_hour else time


def planned_text(plan: dict[str, Any] | None) -> str:
    """Returns the time that was expected, with its price; "" if none was. plan: that of `decision.json`."""
    estimate = (plan or {}).get("estimate")
    return time_and_money(sum(estimate["seconds"].values()), price(plan)) if estimate else ""


def taken_text(seconds: dict[str, float], plan: dict[str, Any] | None) -> str:
    """Returns the time that a run took, with its price. seconds, plan: those of `decision.json`."""
    return time_and_money(sum(seconds.values()), price(plan))


def price(plan: dict[str, Any] | None) -> float:
    """Returns the price of an hour of the machines; 0 if they had none. plan: that of `decision.json`."""
    return float((plan or {}).get("cost_per_hour") or 0)
