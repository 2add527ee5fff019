"""The lock-box: read once for a promotion, with a record, and in nothing that a night looks at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import manifest
from pipeline.dataset.manifest import Manifest, Split
from pipeline.dataset.parquet import read_split_provenance
from pipeline.evaluation.runner import EvaluateJob
from pipeline.ingestion.plan import SHARD_BYTES
from pipeline.ingestion.sources import open_source
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining import registry
from pipeline.retraining.decision import lock_box, promotion
from pipeline.retraining.decision.lock_box import (
    check_locked,
    read_lock_box,
    rows_that_count,
    warn_of_empty,
    with_reading,
)
from pipeline.retraining.decision.promotion_gate import Gate, decide
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import make_tree
from tests.support.trained.predictions import predictions
from tests.support.trained.retraining import planned_run

CLASSES = tuple("abcdefghij")
JOB = EvaluateJob("", "", "")
CHAMPION = registry.Move("champion", 1, "c" * 16, 0, "", 0.0)


def rights(won: int, lost: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """bool [rows] of champion and challenger, which is right `won` times alone and wrong `lost` times alone."""
    numbers = np.arange(rows)
    return numbers >= won, (numbers < won) | (numbers >= won + lost)


@pytest.mark.parametrize(("won", "lost", "passes"), [(0, 0, True), (10, 18, True), (10, 20, False), (30, 0, True)])
def test_a_significant_loss_is_refused_and_a_chance_loss_is_not(won: int, lost: int, passes: bool) -> None:
    """One-sided: 20 or more of 30 are the champion's with probability 0.049, 18 or more of 28 with 0.09."""
    check = check_locked(*rights(won, lost), 0.05)
    assert check.passed is passes
    assert ("a significant loss" in check.text) is not passes


@pytest.fixture
def data() -> Manifest:
    split = Split(0, (), ())
    return Manifest("d", CLASSES, 0, {"train": split, "val": split, "test": replace(split, rows=400)})


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Evaluations are not made: the challenger loses. The split and folder of each are listed."""
    found: list[tuple[str, str]] = []
    champion, challenger = map(predictions, rights(10, 20))

    def evaluate(
        run: object, checkpoint: str, name: str, job: EvaluateJob, *given: object
    ) -> tuple[Any, dict[str, Any]]:
        found.append((job.split, name))
        return (champion if "champion" in name else challenger), {}

    monkeypatch.setattr(promotion, "evaluate_model", evaluate)
    monkeypatch.setattr(lock_box, "rows_that_count", lambda *given: np.ones(400, bool))
    return found


def test_each_reading_leaves_one_record_that_never_changes(
    data: Manifest, evaluated: list[tuple[str, str]], tmp_path: Path
) -> None:
    run = planned_run(str(tmp_path), champion=CHAMPION, gate=Gate(lock_box=0.2))
    reading = read_lock_box(run, data, [], JOB, None)
    assert evaluated == [("test", "lock-box/champion"), ("test", "lock-box/challenger")]
    assert reading.as_json() == {"rows": 400, "correct": {"champion": 390, "challenger": 380}, "readings": 1}
    place = tmp_path / "lock-box" / f"{run.id}.json"
    record = place.read_text()
    assert json.loads(record)["champion"] == CHAMPION.version
    assert read_lock_box(run, data, [], JOB, None) == reading  # it was killed, and goes on
    assert place.read_text() == record
    assert read_lock_box(replace(run, fingerprint="e" * 64), data, [], JOB, None).readings == 2
    champion, challenger = map(predictions, rights(60, 20))
    won = decide(champion, challenger, CLASSES, Gate())
    assert won.promote
    after = with_reading(won, reading)
    assert not after.promote
    assert after.reason.startswith("kept the champion: -2.50 points on 400 images that no night looks at")


def test_a_lock_box_without_a_row_that_counts_fails_the_check_and_is_not_read(
    data: Manifest, evaluated: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(lock_box, "rows_that_count", lambda *given: np.zeros(400, bool))
    run = planned_run(str(tmp_path), champion=CHAMPION, gate=Gate(lock_box=0.2))
    reading = read_lock_box(run, data, [], JOB, None)
    assert not reading.check.passed
    assert reading.check.text.startswith("of 400 images of the lock-box none is left that neither model was trained on")
    assert reading.as_json() == {"rows": 0, "correct": {"champion": 0, "challenger": 0}, "readings": 0}
    assert evaluated == []
    assert list(tmp_path.iterdir()) == []
    warn_of_empty(run, data, [], None)
    assert "so nothing can be promoted" in caplog.text
    caplog.clear()
    for other in (replace(run, champion=None), replace(run, gate=Gate())):  # no reading, no warning
        warn_of_empty(other, data, [], None)
    assert not caplog.text


def test_rows_that_count_are_unseen_not_in_val_and_of_a_class_that_both_know(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", splits=("train", "val", "test"))
    for split, number in (("val", 1), ("train", 2)):
        (tree / "test" / "ant" / f"00{number}.jpg").write_bytes((tree / split / "ant" / "000.jpg").read_bytes())
    run = planned_run(str(tmp_path / "work"), champion=CHAMPION, gate=Gate(lock_box=0.2))
    ingest_here(open_source(str(tree), spool=str(tmp_path / "spool")), run.dataset, shard_size=SHARD_BYTES)
    data = manifest.load(run.dataset)
    keys = read_split_provenance(run.dataset, data.split("test"), ["key"])["key"].to_pylist()

    def left(class_map: ClassMap | None) -> set[str]:
        rows = rows_that_count(run, data, [], class_map)
        return {key for key, counts in zip(keys, rows, strict=True) if counts}

    assert set(keys) - left(None) == {"test/ant/001.jpg", "test/ant/002.jpg"}
    known = ClassMap(("ant", "cow"), data.classes)
    assert {key.split("/")[1] for key in left(known)} == {"ant", "cow"}
    assert left(ClassMap(("fly",), data.classes)) == set()
