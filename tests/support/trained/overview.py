"""Retraining runs of many nights, as their list has them."""

import numpy as np

from pipeline.retraining.overview.nights import Night

_DAY = 86_400.0


def many_nights(count: int) -> list[Night]:
    """Returns so many runs, one each day: most keep, some promote, a few are stopped by drift."""
    random, correct, nights = np.random.default_rng(0), 7000, list[Night]()
    champion: str | None = None
    for index in range(count):
        status = ("promoted", "kept", "kept", "kept", "kept", "stopped")[index % 6]
        challenger = correct + int(random.integers(-150, 200 if status == "promoted" else 60))
        stopped = status == "stopped"
        data = {
            "rows": {"train": 40_000 + 300 * index, "val": 10_000}, "since": "f" * 12,
            "added": {"train": 320, "val": 4}, "removed": {"train": 20}, "changed": {}, "classes_removed": [],
            "classes_added": ["great crested grebe"] if index % 11 == 5 else [], "quarantined_share": 0.001,
        }  # fmt: skip
        gain = (challenger - correct) / 10_000
        nights.append(
            Night(
                id=f"{index:012x}",
                finished=1.76e9 + _DAY * index,
                status=status,
                reason="the reason",
                challenger=None if stopped else f"{index:016x}",
                champion_before=champion,
                correct={} if stopped else {"champion": correct, "challenger": challenger},
                fair_rows=0 if stopped else 10_000,
                gain=None if stopped else {"gain": gain, "low": gain - 0.005, "high": gain + 0.005},
                data=data if index else {"rows": data["rows"]},
                drift={"warnings": ["far"], "class_mix": 0.3, "thresholds": {"class_mix": 0.1}} if stopped else None,
                seconds={"ingest": 40.0, **({} if stopped else {"train": 1500.0 + index, "evaluate": 60.0})},
                plan={"estimate": {"seconds": {"train": 1600.0}}, "cost_per_hour": 2.4},
                report=None if stopped else f"nights/{index:012x}/challenger/report.html",
                comparison=None if stopped else f"nights/{index:012x}/comparison.html",
            )
        )
        champion = f"{index:016x}" if status == "promoted" else champion
        correct = challenger if status == "promoted" else correct
    return nights
