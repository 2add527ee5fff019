"""What a retraining run will take, estimated from the runs before: seconds of each stage, and their price."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.core.shares import counted
from pipeline.retraining.overview.nights import Night

_RUNS = 5  # the newest that count
_STAGES = ("ingest", "drift", "train", "evaluate")


@dataclass(frozen=True)
class Estimate:
    """Seconds that the stages of a run are expected to take. An estimate, not a limit."""

    seconds: dict[str, float]
    basis: str
    """What the estimate rests on, in words."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def as_json(self) -> dict[str, Any]:
        """Returns the estimate as JSON values."""
        return {"seconds": self.seconds, "basis": self.basis}


def estimate_run(
    nights: Sequence[Night], recipe: str, epochs: float, rows: dict[str, int] | None, has_replay: bool = False
) -> Estimate | None:
    """Returns what a run will take: the median of each stage over the newest runs of the same recipe; None without one.

    Training is scaled by training images times epochs, evaluation by validation images; ingest and drift are as they
    were. Runs with and without a replay of old rows tell nothing of each other; with one, training takes as long as it
    did, since what is new isn't known yet.

    nights: all finished runs. recipe: name of the recipe. epochs: of the run. rows: of each split, None as long as the
    source isn't ingested: then as many as the newest run had. has_replay: whether the run replays. Runs that were
    stopped by drift, resumed after a kill, or made by a program that counted no rows, are left out.
    """
    known = [each for each in nights if _is_whole(each) and each.recipe == recipe and has_replay == bool(each.replay)]
    known = known[-_RUNS:]
    if not known:
        return None
    expected = rows or known[-1].data["rows"]  # type: ignore[index]
    seconds = {
        stage: median(_scaled(each, stage, epochs, expected) for each in known if stage in each.seconds)
        for stage in _STAGES
        if any(stage in each.seconds for each in known)
    }
    images = counted(expected["train"], "training image")
    said = f"for {images}" if rows else f"as if there were {images} again: the source isn't ingested yet"
    return Estimate(seconds, f"median of {counted(len(known), 'run')} of recipe {recipe}, {said}")


def _is_whole(night: Night) -> bool:
    is_resumed = bool((night.plan or {}).get("resumed"))
    return "train" in night.seconds and night.data is not None and night.epochs > 0 and not is_resumed


def _scaled(night: Night, stage: str, epochs: float, rows: dict[str, int]) -> float:
    seconds, had = night.seconds[stage], night.data["rows"]  # type: ignore[index]
    if stage == "train" and night.replay:
        return seconds * epochs / night.epochs
    if stage == "train":
        return seconds * rows["train"] * epochs / max(1, had["train"] * night.epochs)
    return seconds * rows["val"] / max(1, had["val"]) if stage == "evaluate" else seconds
