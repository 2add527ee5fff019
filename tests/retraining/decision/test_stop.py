"""A run that drift stops leaves a decision as every run does, and trains nothing."""

from pathlib import Path

import pytest

from pipeline.core.errors import RecipeError
from pipeline.retraining.decision.drift import Thresholds, assess
from pipeline.retraining.decision.stop import publish_stop
from pipeline.retraining.workspace import interrupted_run, is_unchanged, read_latest, resume_or_start
from pipeline.storage import files
from tests.support.trained.retraining import planned_run


def test_a_stopped_run_is_the_newest_finished_one(tmp_path: Path) -> None:
    run = resume_or_start(planned_run(str(tmp_path)))
    drift = assess(0.3, 0.05, 0.7, Thresholds(features=0.6))
    values = publish_stop(run, drift, {"rows": 10, "seconds": {"ingest": 1.0}, "finished": 5.0})
    assert interrupted_run(run.workspace) is None
    assert read_latest(run.workspace) == files.read_json(f"{run.folder}/decision.json")
    assert is_unchanged(values, run.fingerprint, run.recipe)
    assert values["reason"].startswith("stopped before training: the mix of classes has changed: 0.300")
    assert [(check["name"], check["found"], check["allowed"]) for check in values["checks"]] == [
        ("drift of class mix", 0.3, 0.1),
        ("drift of features", 0.7, 0.6),
    ]
    assert values["drift"]["thresholds"] == {"class_mix": 0.1, "brightness": 0.1, "features": 0.6}
    page = (tmp_path / "nights" / run.id / "decision.html").read_text()
    assert "Stopped before training: the champion stays" in page
    assert "Compared on" not in page


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_no_distance_can_have_is_an_error(value: float) -> None:
    with pytest.raises(RecipeError, match=r"drift brightness=.* must be 0 or more"):
        Thresholds(brightness=value)
