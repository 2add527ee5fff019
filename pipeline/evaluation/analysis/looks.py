"""Looks at the test split: when a run was evaluated on it before. A figure that choices were made by is optimistic."""

import re
import time
from typing import Any

from pipeline.evaluation.certificate import Certificate
from pipeline.storage import files

LOOKS_NAME = "test-evaluations.json"
TEST = "test"
_CHECKPOINT = re.compile(r"/checkpoints/[^/]+$")


def note_look(model_uri: str, certificate: Certificate) -> list[str] | None:
    """Notes an evaluation on test in the run's folder, and returns the dates of the earlier ones, oldest first.

    model_uri: of the run, or of one of its checkpoints, which count together. Returns None for another split than test.
    """
    if certificate.split != TEST:
        return None
    place = files.join(_CHECKPOINT.sub("", model_uri), LOOKS_NAME)
    looks: list[dict[str, Any]] = files.read_json(place) if files.exists(place) else []
    earlier = [look["date"] for look in looks if look["dataset_digest"] == certificate.dataset_digest]
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    looks.append({"date": date, "dataset_digest": certificate.dataset_digest, "certificate": certificate.digest})
    files.write_json(place, looks, pretty=True)
    return earlier


def looks_text(earlier: list[str]) -> str:
    """Returns one sentence about the earlier looks, without a full stop."""
    if not earlier:
        return "the first evaluation of this run on test, which was kept apart"
    times = "" if len(earlier) == 1 else f", {len(earlier)} times in all"
    return f"test was evaluated before, on {earlier[-1]}{times}: looking again makes its figure optimistic"
